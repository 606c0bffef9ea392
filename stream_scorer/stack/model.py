"""The state of a running stack: addresses, process identities, and the state file with both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stream_scorer.errors import UsageError

SERVICES = ("kafka", "redis", "mlflow")
STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True)
class StackAddresses:
    """Address of each service; None if the stack does not include it."""

    kafka: str | None = None
    """Bootstrap servers, ``127.0.0.1:12345``."""
    redis: str | None = None
    """``redis://127.0.0.1:6379/0``."""
    mlflow: str | None = None
    """``http://127.0.0.1:5000``."""

    def get(self, service: str) -> str | None:
        """The address of `service`; None if the stack does not include it."""
        return {"kafka": self.kafka, "redis": self.redis, "mlflow": self.mlflow}[service]


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, distinguishable from a later one with the same pid."""

    pid: int
    started: int
    """Start time in clock ticks since boot, field 22 of ``/proc/<pid>/stat``."""


@dataclass(frozen=True, slots=True)
class StackState:
    """The content of the state file."""

    addresses: StackAddresses
    supervisor: ProcessId | None
    """None if a Docker engine runs the services."""
    services: dict[str, ProcessId] = field(default_factory=dict)
    data_dir: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StackState:
        """The inverse of `to_json`. Raises KeyError or TypeError on another shape."""
        supervisor = data["supervisor"]
        return cls(
            addresses=StackAddresses(**data["addresses"]),
            supervisor=ProcessId(**supervisor) if supervisor else None,
            services={name: ProcessId(**value) for name, value in data["services"].items()},
            data_dir=data["data_dir"],
        )


def write_state(folder: Path, state: StackState) -> None:
    """Replace the state file of `folder` atomically."""
    temporary = folder / f"{STATE_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(state.to_json(), indent=2) + "\n")
    temporary.replace(folder / STATE_FILE)


def load_state(folder: Path) -> StackState | None:
    """The state file of `folder`, whether or not the stack runs; None without one. Raises UsageError if malformed."""
    path = folder / STATE_FILE
    try:
        return StackState.from_json(json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is not a state file of the stack: {error}",
            hint="Delete the file, and stop the services of that stack manually.",
        ) from error


def check_services(services: Iterable[str]) -> tuple[str, ...]:
    """`services` without repeats, in the order of `SERVICES`. Raises UsageError on an unknown or missing name."""
    wanted = set(services)
    if unknown := wanted - set(SERVICES):
        raise UsageError(f"unknown service: {', '.join(sorted(unknown))}", hint=f"The stack has {', '.join(SERVICES)}.")
    if not wanted:
        raise UsageError("no service was named", hint=f"Name one or more of {', '.join(SERVICES)}.")
    return tuple(name for name in SERVICES if name in wanted)
