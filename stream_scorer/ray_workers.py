"""Workers on Ray: a local one that ends with the command, or a cluster. Ray is imported only here, and only on use.

A local Ray listens on loopback only, with a token of its own, without dashboard and usage statistics. Ray passes
arguments between processes in its own format, which contains pickled objects: use a cluster only if everyone who can
write to it may run code as you.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from stream_scorer import __version__
from stream_scorer.errors import SettingsError, StreamScorerError, UnavailableError, UsageError, install_hint
from stream_scorer.workers import Actor

# Shared memory of a local Ray: blocks and pieces that are on the way, and as many per worker. Ray writes what does not
# fit to its temporary folder.
STORE_BYTES, STORE_BYTES_PER_WORKER = 512 << 20, 192 << 20
COMMON_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}
# Ray gives its own processes 30 s to start, which a busy machine may exceed at the first attempt.
ATTEMPTS = 3


class RayActor:
    """An actor on Ray."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: str, *arguments: Any, returns: int = 1) -> list[Any]:
        """See `workers.Actor.call`."""
        handles = getattr(self._actor, method).options(num_returns=returns).remote(*arguments)
        return [handles] if returns == 1 else list(handles)


class RayWorkers:
    """See `workers.Workers`. `ray` is the module, which is connected."""

    def __init__(self, ray: Any, count: int) -> None:
        self._ray, self.count = ray, count

    def start(self, kind: type[Any], *arguments: Any, cores: int = 1) -> Actor:
        """See `Workers.start`."""
        options = {"num_cpus": cores, "scheduling_strategy": "SPREAD"}
        return RayActor(self._ray.remote(kind).options(**options).remote(*arguments))

    def put(self, value: Any) -> Any:
        """See `Workers.put`."""
        return self._ray.put(value)

    def get(self, handle: Any) -> Any:
        """See `Workers.get`. Raises `StreamScorerError` if a worker was lost."""
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, StreamScorerError):
                raise cause from None
            if isinstance(cause, Exception):
                raise
            raise _lost(error) from None


@contextmanager
def ray_workers(count: int | None, address: str | None) -> Iterator[RayWorkers]:
    """`count` workers (None: one per core) on the cluster at `address`, or (None) on a local Ray that ends afterwards.

    Raises:
        SettingsError: Ray is not installed. UsageError: the cluster has fewer cores than workers, or another version of
            this package. UnavailableError: Ray does not start, or the cluster does not answer.
    """
    os.environ |= local_settings() if address is None else COMMON_SETTINGS
    ray = _import_ray()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            if address is None:
                # Ray opens its own folder to all users.
                _start_local(ray, count or len(os.sched_getaffinity(0)), f"{folder}/ray")
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises plain exceptions
            ray.shutdown()
            text = " ".join(str(error).split())
            raise UnavailableError(
                f"Ray does not start: {text}" if address is None else f"no Ray cluster at {address}: {text}",
                hint="Use --engine local, or try again when the machine is less busy."
                if address is None
                else "Check --ray-address and, if the cluster has one, RAY_AUTH_TOKEN.",
            ) from None
        try:
            cores = int(ray.cluster_resources().get("CPU", 0))
            wanted = count or max(cores, 1)
            if wanted > cores:
                raise UsageError(
                    f"the Ray cluster has {cores} cores, too few for {wanted} workers",
                    hint="Ask for fewer --workers, or add machines.",
                )
            workers = RayWorkers(ray, wanted)
            if address is not None:
                _check_version(workers)
            yield workers
        finally:
            ray.shutdown()


@cache
def local_settings() -> dict[str, str]:
    """The environment of a local Ray. Ray reads it when it is imported, so it is the same for the whole process."""
    return COMMON_SETTINGS | {
        # Binds all ports to loopback; Ray has it for systems whose firewall asks about other ports.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Workers have the priority of this process, not the lowest.
        "RAY_worker_niceness": "0",
    }


class Version:
    """What a worker has installed."""

    def get(self) -> str:
        """The version of this package."""
        return __version__


def _check_version(workers: RayWorkers) -> None:
    (handle,) = workers.start(Version).call("get")
    found = workers.get(handle)
    if found != __version__:
        raise UsageError(
            f"the Ray cluster has stream-scorer {found}, this is {__version__}",
            hint="Install the same version on all machines.",
        )


def _start_local(ray: Any, count: int, folder: str) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=count,
                include_dashboard=False,
                object_store_memory=STORE_BYTES + count * STORE_BYTES_PER_WORKER,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
            )
            return
        except Exception:  # Ray raises plain exceptions
            ray.shutdown()
            if attempt == ATTEMPTS:
                raise


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise SettingsError(
            "--engine ray needs Ray, which is not installed",
            hint=f"{install_hint('ray')} Or use --engine local, which gives the same results.",
        ) from None


def _lost(error: Exception) -> StreamScorerError:
    """The last line of Ray's message names the cause, such as an error of the worker's constructor."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return StreamScorerError(
        f"a Ray worker was lost: {lines[-1].strip()}",
        hint="The same command continues after the last complete piece. If memory was short, use fewer --workers.",
    )
