"""The broker's jars: pinned by name, version and sha256 in ``kafka_jars.lock``, fetched once, checked at every start.

To renew the lock for another Kafka: resolve ``org.apache.kafka:kafka_2.13`` and ``log4j-slf4j-impl`` with
``mvn dependency:copy-dependencies -DincludeScope=runtime`` and write one line per jar, ``group:artifact:version
sha256``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.errors import UnavailableError, UsageError

LOCK_FILE = Path(__file__).with_name("kafka_jars.lock")
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_FETCH_SECONDS = 600  # 43 MB; minutes on a slow line
_JAR_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned jar."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """``artifact-version.jar``."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def coordinate(self) -> str:
        """``group:artifact:version``."""
        return f"{self.group}:{self.artifact}:{self.version}"


def read_lock(path: Path = LOCK_FILE) -> list[Jar]:
    """The pinned jars. Raises UsageError on a malformed line."""
    jars: list[Jar] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.partition("#")[0].split()
        if not text:
            continue
        names = text[0].split(":")
        if len(text) != 2 or len(names) != 3 or len(text[1]) != 64:
            raise UsageError(
                f"{path}:{number}: not 'group:artifact:version sha256'", hint="Restore the file from the repository."
            )
        group, artifact, version = names
        jars.append(Jar(group, artifact, version, text[1]))
    return jars


def kafka_version(jars: Sequence[Jar]) -> str:
    """The pinned Kafka release. Raises UsageError if clients and broker have different releases."""
    versions = {jar.version for jar in jars if jar.group == "org.apache.kafka"}
    if len(versions) != 1:
        raise UsageError(
            f"the jar lock mixes Kafka releases: {', '.join(sorted(versions)) or 'none'}",
            hint="All org.apache.kafka lines must have the same version.",
        )
    return versions.pop()


def cache_root() -> Path:
    """Folder of the jars, shared by all clones of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The XDG specification says to ignore a relative path.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "stream-scorer"


def provide_jars(progress: Callable[[str], None], *, lock: Path = LOCK_FILE, cache: Path | None = None) -> list[Path]:
    """Check the digest of every pinned jar, fetch missing or altered ones, and return all paths.

    Safe with concurrent callers: a jar is renamed to its name after its content was checked. Raises UnavailableError if
    a jar cannot be fetched or its digest differs, UsageError if neither mvn nor jgo is installed.
    """
    jars = read_lock(lock)
    version = kafka_version(jars)
    folder = (cache or cache_root()) / f"kafka-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [jar for jar in jars if _digest(folder / jar.file_name) != jar.sha256]
    if missing:
        progress(f"kafka: fetching {len(missing)} of {len(jars)} jars of Kafka {version} to {folder}")
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            _fetch(missing, Path(temporary), progress)
            for jar in missing:
                source = Path(temporary, jar.file_name)
                if (found := _digest(source)) != jar.sha256:
                    raise UnavailableError(
                        f"{jar.coordinate} has sha256 {found}, but the lock has {jar.sha256}",
                        hint="The jar was altered in transit or at its source: do not use it. Check your Maven mirror.",
                    )
                source.replace(folder / jar.file_name)
    return [folder / jar.file_name for jar in jars]


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _fetch(jars: Sequence[Jar], target: Path, progress: Callable[[str], None]) -> None:
    """Fetch `jars` to `target` with mvn, else with jgo. The caller checks the digests."""
    problems: list[str] = []
    if maven := shutil.which("mvn"):
        problem = _fetch_with_maven(maven, jars, target)
        if problem is None:
            return
        problems.append(problem)
        progress("kafka: mvn could not fetch the jars, trying jgo")
    if importlib.util.find_spec("jgo") is not None:
        problem = _fetch_with_jgo(jars, target, progress)
        if problem is None:
            return
        problems.append(problem)
    if not problems:
        raise UsageError(
            "the Kafka jars are not in the cache, and neither mvn nor the wheel jgo is installed to fetch them",
            hint="Install the extra 'stack' of stream-scorer, or Maven.",
        )
    raise UnavailableError(
        "the Kafka jars could not be fetched: " + "; ".join(problems),
        hint="Check the network, or the mirror in Maven's settings, and try again: fetched jars are kept.",
    )


def _fetch_with_maven(maven: str, jars: Sequence[Jar], target: Path) -> str | None:
    """Return None, or the error text. Transitive resolution is off, because the lock lists every jar."""
    everything = "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
    lines = [
        f"<dependency><groupId>{jar.group}</groupId><artifactId>{jar.artifact}</artifactId>"
        f"<version>{jar.version}</version>{everything}</dependency>"
        for jar in jars
    ]
    pom = target / "pom.xml"
    pom.write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>jars</artifactId>"
        f"<version>1</version><packaging>pom</packaging><dependencies>{''.join(lines)}</dependencies></project>"
    )
    command = [maven, "-q", "-B", "-f", str(pom), _PLUGIN, f"-DoutputDirectory={target}"]
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"mvn: {error}"
    if answer.returncode == 0:
        return None
    errors = [line for line in answer.stdout.splitlines() if "ERROR" in line]
    return f"mvn: {' '.join(errors[:2]) or f'exit code {answer.returncode}'}"


def _fetch_with_jgo(jars: Sequence[Jar], target: Path, progress: Callable[[str], None]) -> str | None:
    """Return None, or the error text. One jar at a time, because with two jgo chose another version."""
    from jgo.maven import MavenContext

    # A private repository: jgo writes files in place, so a shared one is unsafe with concurrent callers.
    context = MavenContext(repo_cache=target / "repository", timeout=_JAR_SECONDS)
    for done, jar in enumerate(jars):
        try:
            path = context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
        except (OSError, RuntimeError, ValueError, AssertionError) as error:  # jgo has no error class of its own
            return f"jgo: {jar.coordinate}: {error}"
        shutil.copyfile(path, target / jar.file_name)
        if done % 10 == 9:
            progress(f"kafka: {done + 1} of {len(jars)} jars fetched")
    return None
