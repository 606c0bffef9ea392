"""Connects to Redis with short timeouts and without hidden retries, and maps every redis error to ours."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from stream_scorer.errors import SettingsError, StateDenied, StateUnavailable, UsageError
from stream_scorer.state.packing import CommandPacker

T = TypeVar("T")
READ_TIMEOUT_S = 2.0
# A micro-batch's read takes a few milliseconds. Beyond this the batch is scored without features and says so: its
# scores are still published within two seconds of their arrival.
SCORING_TIMEOUT_S = 1.5
SCORING_CONNECT_TIMEOUT_S = 0.5
# A call that fails later than this is not repeated: both attempts together must fit the timeout.
REPEAT_WITHIN_S = 0.2
CONNECT_TIMEOUT_S = 2.0
_DENIED = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthenticationWrongNumberOfArgsError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)


class _Client(redis.Redis):
    """A client that leaves a server that has become a replica.

    After a failover the connections to it stay open, and reads go on to succeed. So they are closed, those in use once
    their call ends: new ones resolve the name of the server again. A Redis Cluster redirects its clients itself.
    """

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            if _is_of_replica(error):
                self.connection_pool.update_active_connections_for_reconnect()
                self.connection_pool.disconnect(inuse_connections=False)
            raise


class _ClusterClient(RedisCluster):
    """A client that finds a cluster whose nodes have all got other addresses.

    After its start, a client of redis-py only asks the nodes that it knows for the others. So after a failure, `entry`,
    the node that the URL names, is one of them again: its name may lead to another node by now. It is not the only one,
    because it may be the node that has failed.
    """

    entry: ClusterNode

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.RedisClusterException):
            manager = self.nodes_manager
            manager.startup_nodes = {**manager.startup_nodes, self.entry.name: self.entry}
            raise


def _is_of_replica(error: redis.ResponseError) -> bool:
    """Whether a replica refused to write. Redis 6 quotes the error of a command in a script."""
    return isinstance(error, redis.exceptions.ReadOnlyError) or "-READONLY " in str(error)


def connect(
    url: str, *, timeout_s: float = READ_TIMEOUT_S, connect_timeout_s: float = CONNECT_TIMEOUT_S
) -> redis.Redis:
    """A client for `url` (``redis://host:port/db``, ``rediss://`` with TLS) that returns bytes.

    It does not connect yet: see `ping`.

    Retries are off: redis-py repeats a timed-out command ten times by default, and a script that runs twice may lose or
    repeat an update.

    Raises:
        SettingsError: the URL is not a Redis URL.
    """
    try:
        return _Client.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=connect_timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            command_packer=CommandPacker(),
        )
    except ValueError as error:
        raise SettingsError(f"not a Redis address: {hide_password(url)}: {error}") from None


def connect_cluster(
    url: str, *, timeout_s: float = READ_TIMEOUT_S, connect_timeout_s: float = CONNECT_TIMEOUT_S
) -> RedisCluster:
    """As `connect`, for the Redis Cluster that the node at `url` belongs to. It connects to that node at once.

    Raises:
        SettingsError: the URL is not a Redis URL.
        StateUnavailable: the node does not answer, or belongs to no cluster.
    """
    try:
        with mapped_errors(url):
            client = _ClusterClient.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=connect_timeout_s,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
    except ValueError as error:
        raise SettingsError(f"not a Redis address: {hide_password(url)}: {error}") from None
    assert isinstance(client, _ClusterClient)
    parts = urlsplit(url)
    client.entry = ClusterNode(parts.hostname or "localhost", parts.port or 6379)  # type: ignore[no-untyped-call]
    return client


def ping(client: redis.Redis | RedisCluster, url: str) -> None:
    """Raise `StateUnavailable` unless Redis answers."""
    with mapped_errors(url):
        client.ping()


def require_no_eviction(client: Any) -> bool:
    """Whether Redis reveals its ``maxmemory-policy``: a managed one often refuses CONFIG, and sometimes INFO.

    Raises:
        UsageError: the policy lets Redis evict keys. StateUnavailable: Redis does not answer.
    """
    for command, argument in (("config_get", "maxmemory-policy"), ("info", "memory")):
        with mapped_errors():
            try:
                answer = getattr(client, command)(argument)
            except redis.ResponseError:
                continue
        found = answer.get("maxmemory-policy", answer.get("maxmemory_policy"))
        if found is None:
            continue
        policy = found.decode() if isinstance(found, bytes) else str(found)
        if policy != "noeviction":
            raise UsageError(
                f"Redis runs with maxmemory-policy {policy}: it may silently drop what we store",
                hint="Set maxmemory-policy noeviction.",
            )
        return True
    return False


def command_seconds(client: redis.Redis, url: str) -> dict[str, float]:
    """Seconds that Redis has spent in each command since its start, by lower-case name; `COMMANDSTATS` of INFO.

    Commands that a script calls count twice: by their own name, and within the script.
    """
    with mapped_errors(url):
        stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): used["usec"] / 1e6 for name, used in stats.items()}


def hide_password(url: str) -> str:
    """`url` without user and password, for logs and messages."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host  # IPv6
    return f"{parts.scheme}://{host}:{parts.port or 6379}{parts.path}"


def repeat_once(call: Callable[[], T]) -> T:
    """Make the call again if its connection broke. Only for calls that may run twice: reads, and guarded updates.

    A call that timed out is not repeated: a server that hangs would hang again.
    """
    began = time.monotonic()
    try:
        return call()
    except redis.ConnectionError:
        if time.monotonic() - began > REPEAT_WITHIN_S:
            raise
        return call()


@contextmanager
def mapped_errors(url: str = "") -> Iterator[None]:
    """Turn every redis error inside the block into `StateUnavailable`, or `StateDenied` if Redis refuses the client."""
    try:
        yield
    except _DENIED as error:
        raise _denied(error, url) from error
    except (redis.RedisError, redis.exceptions.RedisClusterException) as error:
        if _certificate_error(error) is not None:
            raise _denied(error, url) from error
        where = f" at {hide_password(url)}" if url else ""
        if _lacks_resp3(error):
            # Its text quotes the password.
            raise StateUnavailable(
                f"Redis{where} does not accept the command HELLO 3",
                hint="Redis 6 or later is necessary; a proxy before it must support RESP3.",
            ) from None
        raise StateUnavailable(
            f"Redis{where}: {type(error).__name__}: {error}",
            hint="Is it running? `stream-scorer stack status`, or check the setting `redis.url`.",
        ) from error


def _lacks_resp3(error: Exception) -> bool:
    """Whether the server refused the protocol that this client begins with."""
    return "HELLO" in str(error) or "NOPROTO" in str(error)


def _certificate_error(error: BaseException) -> ssl.SSLError | None:
    """The error that caused `error`, if one side did not accept the certificate of the other."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _denied(error: Exception, url: str) -> StateDenied:
    where = f" at {hide_password(url)}" if url else ""
    tls = _certificate_error(error)
    reason = f"the TLS connection fails: {getattr(tls, 'verify_message', '') or tls.reason}" if tls else str(error)
    return StateDenied(
        f"Redis{where} refuses this client: {reason}",
        hint="Check redis.username, redis.password and the certificates; deploy/redis has the ACLs of each role.",
    )
