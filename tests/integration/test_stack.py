"""The local stack on real parts: it comes up, answers, and leaves no process behind however its owner ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from stream_scorer.cli.stack import stack as stack_command
from stream_scorer.errors import StateUnavailable, UnavailableError, UsageError
from stream_scorer.stack import LocalStack, down, jars, read_state, status, up
from stream_scorer.stack.model import load_state
from stream_scorer.stack.process import identify

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

GONE_SECONDS = 10.0


def port_of(address: str) -> int:
    port = urlsplit(address if "://" in address else f"tcp://{address}").port
    assert port is not None
    return port


def redis_says(address: str, *words: str) -> bytes:
    """The first line of Redis' answer to an inline command."""
    with socket.create_connection(("127.0.0.1", port_of(address)), 2) as link:
        link.sendall((" ".join(words) + "\r\n").encode())
        return link.makefile("rb").readline().rstrip()


def eventually(check: Callable[[], bool], seconds: float = GONE_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def processes_naming(folder: Path) -> list[int]:
    """Every live process with `folder` on its command line: all services and the supervisor have it there.

    Redis rewrites its own command line, so it is found by the working directory that ``--dir`` gave it.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if (str(folder) in words or where.startswith(str(folder / "redis"))) and identify(int(entry.name)):
            found.append(int(entry.name))
    return found


def test_three_services_come_up_answer_and_end(tmp_path: Path) -> None:
    lines: list[str] = []
    with LocalStack(data_dir=tmp_path, on_progress=lines.append) as stack:
        kafka, redis, mlflow = stack.addresses.kafka, stack.addresses.redis, stack.addresses.mlflow
        assert kafka and redis and mlflow
        assert all(any(line.startswith(name) for line in lines) for name in ("kafka", "redis", "mlflow"))

        admin = AdminClient({"bootstrap.servers": kafka})
        admin.create_topics([NewTopic("made", 2, 1)])["made"].result(10)
        assert set(admin.list_topics(timeout=10).topics["made"].partitions) == {0, 1}
        with pytest.raises(KafkaException):  # one node: nothing to replicate to
            admin.create_topics([NewTopic("replicated", 1, 2)])["replicated"].result(10)

        assert redis_says(redis, "SET", "key", "value") == b"+OK"
        with socket.create_connection(("127.0.0.1", port_of(redis)), 2) as link:
            link.sendall(b"CONFIG GET maxmemory-policy\r\n")
            assert b"noeviction" in link.recv(200)

        search = urllib.request.Request(
            f"{mlflow}/api/2.0/mlflow/experiments/search",
            data=b'{"max_results": 5}',
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(search, timeout=20) as answer:
            assert json.load(answer)["experiments"][0]["name"] == "Default"

        assert set(stack.pids) == {"kafka", "redis", "mlflow"}
        assert len(processes_naming(tmp_path)) >= 4  # with the supervisor: the search below can find something
        # The supervisor killed outright: the kernel ends its children, MLflow's own child too.
        state = load_state(tmp_path)
        assert state is not None and state.supervisor is not None
        os.kill(state.supervisor.pid, signal.SIGKILL)
        assert eventually(lambda: not processes_naming(tmp_path)), processes_naming(tmp_path)
        with pytest.raises(UnavailableError, match="supervisor ended"):
            stack.restart("redis")


OWNER = """
import json, sys, time
from pathlib import Path
from stream_scorer.stack import LocalStack
with LocalStack(("kafka", "redis"), Path(sys.argv[1])) as stack:
    print(json.dumps(stack.pids), flush=True)
    time.sleep(600)
"""


def test_killing_the_owner_ends_every_service(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            pids = json.loads(owner.stdout.readline())
            assert set(pids) == {"kafka", "redis"} and all(identify(pid) for pid in pids.values())
        finally:
            owner.kill()
    assert eventually(lambda: not any(identify(pid) for pid in pids.values()))
    assert eventually(lambda: not processes_naming(tmp_path)), processes_naming(tmp_path)


@pytest.fixture(scope="module")
def small() -> Iterator[LocalStack]:
    with LocalStack(("kafka", "redis")) as stack:
        yield stack


def test_redis_stops_and_starts_on_its_port(small: LocalStack) -> None:
    address, pid = small.addresses.redis, small.pids["redis"]
    assert address is not None
    redis_says(address, "SET", "key", "value")
    small.stop_service("redis")
    assert "redis" not in small.pids and not identify(pid)
    with pytest.raises(ConnectionRefusedError):
        redis_says(address, "PING")
    small.start_service("redis")
    assert small.addresses.redis == address and small.pids["redis"] != pid
    assert redis_says(address, "EXISTS", "key") == b":0"  # nothing is kept on disk


def test_redis_may_use_huge_pages(small: LocalStack) -> None:
    """Not that it gets some: memory may be scarce, and glibc 2.36 asks for them in some starts only."""
    process = Path(f"/proc/{small.pids['redis']}")
    enabled = [line for line in (process / "status").read_text().splitlines() if line.startswith("THP_enabled:")]
    if not enabled:
        pytest.skip("this kernel does not report whether a process may use huge pages")
    assert enabled[0].split()[1] == "1"
    assert b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in (process / "environ").read_bytes()


def test_kafka_killed_keeps_port_and_topics(small: LocalStack) -> None:
    address, pid = small.addresses.kafka, small.pids["kafka"]
    assert address is not None
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic("kept", 3, 1)])["kept"].result(10)
    small.restart("kafka", kill=True)
    assert small.addresses.kafka == address and small.pids["kafka"] != pid
    topics = AdminClient({"bootstrap.servers": address}).list_topics(timeout=10).topics
    assert len(topics["kept"].partitions) == 3


def test_a_taken_port_is_named(small: LocalStack) -> None:
    assert small.addresses.redis is not None
    port = port_of(small.addresses.redis)
    small.stop_service("redis")
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(StateUnavailable, match=f"port {port} is taken"),
    ):
        small.start_service("redis")
    small.start_service("redis")  # the stack outlives the error


def test_a_service_not_asked_for_is_a_readable_mistake(small: LocalStack) -> None:
    with pytest.raises(UsageError, match="mlflow is not part"):
        small.restart("mlflow")
    with pytest.raises(UsageError, match="unknown service: rabbit"):
        LocalStack(("rabbit",))


def test_data_without_a_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalStack(("redis",)):
        (run,) = (tmp_path / ".stream-scorer").iterdir()
        assert (run / "logs" / "redis.log").exists()
    assert not run.exists()


def test_a_service_that_dies_at_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "redis-server"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such thing as a free cache\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    with pytest.raises(StateUnavailable, match=r"(?s)redis ended at start with code 7.*free cache"):
        LocalStack(("redis",), tmp_path / "data").start()
    assert not processes_naming(tmp_path / "data")


def test_up_twice_and_down_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".stream-scorer" / "stack"
    run = CliRunner().invoke
    try:
        first = run(stack_command, ["up", "--service", "redis", "--json"])
        assert first.exit_code == 0, first.output
        address = json.loads(first.stdout)["redis"]
        assert redis_says(address, "PING") == b"+PONG"
        pids = processes_naming(folder)
        assert len(pids) == 2

        second = run(stack_command, ["up", "--service", "redis", "--json"])
        assert json.loads(second.stdout)["redis"] == address and "already runs" in second.stderr
        assert processes_naming(folder) == pids
        with pytest.raises(UsageError, match="another stack runs"):
            LocalStack(("redis",), folder).start()

        shown = run(stack_command, ["status", "--json"])
        assert shown.exit_code == 0 and [entry["alive"] for entry in json.loads(shown.stdout)] == [True]
        addresses = read_state(tmp_path)
        assert addresses is not None and addresses.redis == address and addresses.kafka is None

        assert run(stack_command, ["down"]).exit_code == 0
        assert not processes_naming(folder) and read_state(tmp_path) is None and status(tmp_path) == []
        assert run(stack_command, ["status"]).exit_code == 1
        assert "no stack was running" in run(stack_command, ["down"]).stderr
    finally:
        down(tmp_path)


def test_down_spares_a_stranger_with_the_same_number(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            up(tmp_path, ("redis",))
            path = tmp_path / ".stream-scorer" / "stack" / "state.json"
            real = path.read_text()
            state = json.loads(real)
            state["supervisor"] = state["services"]["redis"] = {"pid": stranger.pid, "started": 1}
            path.write_text(json.dumps(state))
            assert read_state(tmp_path) is None
            assert down(tmp_path) is False
            assert stranger.poll() is None
            path.write_text(real)
        finally:
            stranger.kill()
            assert down(tmp_path)


def test_a_jar_with_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = jars.read_lock()[:1]
    lock = tmp_path / "lock"
    lock.write_text(f"org.apache.kafka:{wanted[0].artifact}:{wanted[0].version} {wanted[0].sha256}\n")

    def altered(missing: list[jars.Jar], target: Path, _progress: Callable[[str], None]) -> None:
        for jar in missing:
            (target / jar.file_name).write_bytes(b"not this")

    monkeypatch.setattr(jars, "_fetch", altered)
    with pytest.raises(UnavailableError, match="but the lock has"):
        jars.provide_jars(lambda _text: None, lock=lock, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.jar"))
