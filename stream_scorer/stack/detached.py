"""A stack that outlives the shell: `up`, `down`, `status`, and `read_state` for its addresses."""

from __future__ import annotations

import fcntl
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.stack import docker
from stream_scorer.stack.link import SupervisorLink
from stream_scorer.stack.model import (
    SERVICES,
    STATE_FILE,
    StackAddresses,
    StackState,
    check_services,
    load_state,
    write_state,
)
from stream_scorer.stack.process import is_alive, send_signal, wait_gone

FOLDER = Path(".stream-scorer", "stack")
"""Folder of the detached stack, relative to the project folder (`root` in every function here)."""

_SUPERVISOR_SECONDS = 15.0  # the slowest service has 8 s to stop before it is killed
_LEFTOVER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StackStatus:
    """One service of a detached stack."""

    service: str
    address: str
    alive: bool
    pid: int | None
    """None if a Docker engine runs it."""


def read_state(root: Path = Path()) -> StackAddresses | None:
    """The addresses of the stack that runs in `root`; None without a stack, or if its supervisor is dead."""
    state = _running_state(root / FOLDER)
    return state.addresses if state else None


def up(
    root: Path = Path(),
    services: Sequence[str] = SERVICES,
    *,
    on_progress: Callable[[str], None] | None = None,
    use_docker: bool = False,
) -> tuple[StackAddresses, bool]:
    """Start a detached stack; return its addresses and whether it was started now (False: it ran already).

    The default is local processes, also where a Docker engine runs, so that every machine runs the same parts.
    Raises UsageError or UnavailableError; in that case nothing is left running.
    """
    names = check_services(services)
    folder = (root / FOLDER).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder):
        if state := _running_state(folder):
            return state.addresses, False
        if use_docker:
            state = StackState(docker.compose_up(names), None, {}, str(folder))
            write_state(folder, state)
            return state.addresses, True
        link = SupervisorLink(names, folder, on_progress=on_progress)
        try:
            state = link.wait_ready()
            link.detach()
        except BaseException:
            link.close()
            raise
        return state.addresses, True


def down(root: Path = Path(), *, purge: bool = False) -> bool:
    """Stop the stack of `root`; return whether one was running. Its data stays for the next `up` unless `purge`.

    A process is signalled only if its pid and its start time match the state file.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        return False
    with _one_at_a_time(folder):
        state = load_state(folder)
        was_running = _running_state(folder) is not None
        if state is not None:
            if state.supervisor is None:
                docker.compose_down()
            else:
                send_signal(state.supervisor, signal.SIGTERM)
                if not wait_gone(state.supervisor, _SUPERVISOR_SECONDS):
                    send_signal(state.supervisor, signal.SIGKILL)
                for process in state.services.values():
                    if not wait_gone(process, _LEFTOVER_SECONDS if was_running else 0.0):
                        send_signal(process, signal.SIGKILL)
                        wait_gone(process, _LEFTOVER_SECONDS)
            (folder / STATE_FILE).unlink(missing_ok=True)
    if purge:
        shutil.rmtree(folder, ignore_errors=True)
    return was_running


def status(root: Path = Path()) -> list[StackStatus]:
    """One entry per service of the stack in `root`, alive or not; empty without a stack."""
    state = load_state(root / FOLDER)
    if state is None:
        return []
    found: list[StackStatus] = []
    for name in SERVICES:
        address = state.addresses.get(name)
        if address is None:
            continue
        process = state.services.get(name)
        alive = docker.answers(address) if state.supervisor is None else process is not None and is_alive(process)
        found.append(StackStatus(name, address, alive, process.pid if process else None))
    return found


def _running_state(folder: Path) -> StackState | None:
    state = load_state(folder)
    if state is None:
        return None
    if state.supervisor is not None:
        return state if is_alive(state.supervisor) else None
    served = [address for name in SERVICES if (address := state.addresses.get(name))]
    return state if all(map(docker.answers, served)) else None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Serialise commands: of two concurrent `up`, the second waits and returns the stack of the first."""
    with (folder / "command.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
