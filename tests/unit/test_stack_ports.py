"""A service whose port was taken at its start moves to another one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stream_scorer.errors import UnavailableError
from stream_scorer.stack import supervisor
from stream_scorer.stack.services import Launch

_FRAMES = "\\n".join(f"	at kafka.network.Acceptor.start(SocketServer.scala:{line})" for line in range(40))


def service(first_words: str) -> tuple[Any, list[int]]:
    """A service that ends with a long stack trace at its first port, and the ports that it had."""
    ports: list[int] = []

    def prepare(_progress: object) -> Launch:
        code = f"print('{first_words}\\n{_FRAMES}'); raise SystemExit(1)"
        return Launch([sys.executable, "-c", code if len(ports) == 1 else "import time; time.sleep(60)"], {})

    found = SimpleNamespace(
        prepare=prepare, choose_ports=lambda: ports.append(0), answers=lambda: len(ports) > 1, ports=[],
        address="-", ready_seconds=30.0, stop_seconds=5.0, unavailable=UnavailableError,
    )  # fmt: skip
    return found, ports


@pytest.mark.parametrize(
    ("words", "moves"), [("BindException: Address already in use", True), ("no space left", False)]
)
def test_the_cause_is_found_before_a_long_stack_trace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, moves: bool
) -> None:
    made, ports = service(words)
    monkeypatch.setattr(supervisor, "make_service", lambda _name, _folder: made)
    (tmp_path / "logs").mkdir()
    services = supervisor.Supervisor(("kafka",), tmp_path, cast(Any, SimpleNamespace(progress=lambda _text: None)))
    try:
        if moves:
            services.start_all()
        else:
            with pytest.raises(UnavailableError):
                services.start_all()
    finally:
        services.stop_all()
    assert len(ports) == 1 + moves
