"""Check deploy/prometheus and deploy/grafana with promtool; build promtool first if it is not there.

promtool is built from the Go module in tools/promtool, pinned by go.sum, into the user's cache. This takes minutes.
Exit code 77 means that it cannot be built here; stderr has the reason. `--build-only` builds and checks nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "tools" / "promtool"
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
TESTS = ROOT / "tests" / "prometheus"
PACKAGE = "github.com/prometheus/prometheus/cmd/promtool"
# Without optional service discovery, which is most of Prometheus' dependencies; the manifests use DNS.
TAGS = "remove_all_sd,enable_dns_sd"
# Where the Go distribution installs itself.
GO_FOLDER = "/usr/local/go/bin"
SKIPPED = 77
BUILD_TIMEOUT_S = 1_800


class UnavailableError(Exception):
    """promtool is not there and cannot be built."""


def binary() -> Path:
    """Where promtool of the pinned version is, or will be."""
    pinned = (MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes() + TAGS.encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stream-scorer" / "tools" / f"promtool-{hashlib.sha256(pinned).hexdigest()[:16]}"


def build() -> Path:
    """The path of promtool; it is built if it does not exist.

    Raises:
        UnavailableError: Go is absent, or its modules cannot be fetched.
    """
    path = binary()
    if path.exists():
        return path
    go = shutil.which("go") or shutil.which("go", path=GO_FOLDER)
    if go is None:
        raise UnavailableError("Go is not installed")
    sys.stderr.write("building promtool (once, some minutes)...\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "promtool"
        command = [go, "build", "-mod=readonly", "-tags", TAGS, "-o", str(made), PACKAGE]
        done = subprocess.run(command, check=False, cwd=MODULE, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
        if done.returncode != 0:
            raise UnavailableError(f"go build failed: {done.stderr.strip()[-500:]}")
        made.rename(path)
    return path


def queries() -> list[str]:
    """The queries of all panels."""
    return [
        target["expr"].replace("$__rate_interval", "5m")
        for path in sorted(DASHBOARDS.glob("*.json"))
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", [])
    ]


def check(promtool: Path, rules: Path = PROMETHEUS, tests: Path = TESTS) -> dict[str, str]:
    """Run all checks of promtool.

    Args:
        rules: a folder with prometheus.yml and the rules that it names. tests: a folder with unit tests of them.

    Returns:
        The output of each check by its name; empty if it passed.
    """
    out = {
        "configuration and rules": _run(promtool, "check", "config", str(rules / "prometheus.yml")),
        "unit tests of rules": _run(promtool, "test", "rules", *map(str, sorted(tests.glob("*_test.yml")))),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queries.yml"
        recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
        path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}), encoding="utf-8")
        # Lint warns about names and duplicates, which are no concern here.
        out["queries of dashboards"] = _run(promtool, "check", "rules", "--lint=none", str(path))
    return out


def _run(promtool: Path, *arguments: str) -> str:
    done = subprocess.run([str(promtool), *arguments], check=False, capture_output=True, text=True, cwd=ROOT)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()


def main(arguments: list[str]) -> int:
    """Build and check; return 1 if a check fails, `SKIPPED` if promtool is not available."""
    try:
        promtool = build()
    except UnavailableError as error:
        sys.stderr.write(f"skipped: promtool is not available: {error}\n")
        return SKIPPED
    if "--build-only" in arguments:
        print(promtool)
        return 0
    results = check(promtool)
    for name, problem in results.items():
        print(f"{name}: {'passed' if not problem else 'FAILED'}")
        if problem:
            sys.stderr.write(problem + "\n")
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
