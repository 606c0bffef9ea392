"""The cache of compiled code: what it depends on, where it is, and what is removed."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from numba.core import config
from numba.core.dispatcher import Dispatcher

from stream_scorer import compiled
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.cache_cleanup import CacheCleanup

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "stream_scorer"
# Its compiled loop contains `clipped` and `EPSILON` of `links.py`: the logit of 0 is that of EPSILON.
PROGRAM = """
import numpy as np
from stream_scorer.ensemble.calibrate import _calibrate, calibrate
from stream_scorer.ensemble.manifest import Platt
print(-np.log(calibrate(np.zeros(1), Platt(1.0, 0.0)))[0], sum(_calibrate.stats.cache_hits.values()))
"""


def _calibrated(copy: Path, cache: Path) -> tuple[float, int]:
    """-log of the calibrated probability 0 by the copy of the package in `copy`, and how many loops were cached."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(copy)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, check=True)
    value, hits = done.stdout.split()
    return float(value), int(hits)


def test_another_constant_in_an_inlined_module_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    copy, cache = tmp_path / "copy", tmp_path / "cache"
    shutil.copytree(PACKAGE, copy / "stream_scorer", ignore=shutil.ignore_patterns("__pycache__"))
    links = copy / "stream_scorer" / "ensemble" / "links.py"
    before = links.read_text()
    assert _calibrated(copy, cache) == (pytest.approx(6 * 2.302585, rel=1e-5), 0)
    # An upgrade in place, and a rollback to the release before.
    links.write_text(before.replace("EPSILON = 1e-6", "EPSILON = 1e-3"))
    assert _calibrated(copy, cache)[0] == pytest.approx(3 * 2.302585, rel=1e-3)
    links.write_text(before)
    assert _calibrated(copy, cache) == (pytest.approx(6 * 2.302585, rel=1e-5), 1)


def _modules_with_loops() -> list[str]:
    names = (name for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "stream_scorer."))
    return [n for n in names if (file := compiled._file(n)).exists() and "import njit" in file.read_text()]


def _imports(module: str) -> Iterator[str]:
    """What the statements of a module import from the package when it is imported, by the parser of Python."""
    open_: list[ast.AST] = list(ast.parse(compiled._file(module).read_text()).body)
    while open_:
        node = open_.pop()
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            open_ += [] if function or for_types else ast.iter_child_nodes(node)
            continue
        yield from (name for name in names if name.split(".")[0] == "stream_scorer")


def test_every_import_of_a_source_is_found() -> None:
    loops = _modules_with_loops()
    assert len(loops) > 20
    found = set().union(*map(compiled.sources, loops))
    for module in found:
        for name in _imports(module):
            assert {name, name.rpartition(".")[0]} & found, f"{module} imports {name}"
            exact = name if compiled._file(name).exists() else name.rpartition(".")[0]
            assert exact in compiled.sources(module), f"{module} imports {name}"


def test_a_change_elsewhere_compiles_nothing_again() -> None:
    found = compiled.sources("stream_scorer.features.kernel")
    assert {"stream_scorer.state.row_format", "stream_scorer.features.arguments"} <= found
    assert not {"stream_scorer.features.engine", "stream_scorer.records", "stream_scorer.settings"} & found


def test_every_cache_is_in_the_folder_of_its_module() -> None:
    checked = 0
    for name in _modules_with_loops():
        for loop in vars(importlib.import_module(name)).values():
            if isinstance(loop, Dispatcher) and loop.py_func.__module__ == name and loop.stats.cache_path:
                folder = Path(loop.stats.cache_path).parent
                assert folder.name == f"{name.removeprefix('stream_scorer.')}-{compiled.code_hash(name)}"
                assert folder.parent.name == "stream_scorer"
                checked += 1
    assert checked > 60


def test_only_a_small_part_of_the_package_is_hashed() -> None:
    """It takes milliseconds, at every start."""
    found = set().union(*map(compiled.sources, _modules_with_loops()))
    assert sum(compiled._file(name).stat().st_size for name in found) < 1_000_000


def test_an_unusable_folder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from stream_scorer.splitmix64 import finalise

    file = tmp_path / "file"
    file.touch()
    # numba's own choice would be the folder of the module, where stale code may be.
    monkeypatch.setattr(compiled, "_bases", lambda: iter([file, tmp_path / "good"]))
    loop = compiled.njit(cache=True)(finalise.py_func)
    assert tmp_path / "good" / "stream_scorer" in Path(loop.stats.cache_path).parents
    assert os.environ.get("NUMBA_CACHE_DIR", "") == config.CACHE_DIR

    monkeypatch.setattr(compiled, "_bases", lambda: iter([file]))
    compiled._warn_once.cache_clear()
    for _ in range(2):
        assert compiled.njit(cache=True)(finalise.py_func).stats.cache_path is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_numba_chooses_no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream_scorer.splitmix64 import finalise

    monkeypatch.setattr(compiled, "_bases", lambda: iter([tmp_path / "a", tmp_path / "b"]))
    hidden = tmp_path / "a" / "stream_scorer" / f"splitmix64-{compiled.code_hash('stream_scorer.splitmix64')}"
    hidden.mkdir(parents=True)
    # Where numba would put its folder is a file: as if another user had made it.
    (hidden / Path(finalise.stats.cache_path).name).touch()
    loop = compiled.njit(cache=True)(finalise.py_func)
    assert tmp_path / "b" in Path(loop.stats.cache_path).parents


def test_folders_that_were_not_used_for_days_are_removed(tmp_path: Path) -> None:
    now_s, day_s = 1_800_000_000.0, 86_400.0
    ages = {"a-1": 0.0, "b-1": 1.0, "a-2": 2.0, "b-2": 40.0, "a-3": 41.0, ".old-x": 5.0, ".old-y": 0.1}
    for name, days in ages.items():
        (tmp_path / name / "sub").mkdir(parents=True)
        os.utime(tmp_path / name, (now_s - days * day_s,) * 2)
    compiled.remove_old(tmp_path, now_s, max_folders=6)
    assert {path.name for path in tmp_path.iterdir()} == {"a-1", "b-1", "a-2", "b-2", ".old-y"}
    compiled.remove_old(tmp_path, now_s, max_folders=1)
    assert {path.name for path in tmp_path.iterdir()} == {"a-1", "b-1", "a-2", ".old-y"}


def test_a_process_marks_what_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream_scorer.splitmix64 import finalise

    monkeypatch.setattr(compiled, "_bases", lambda: iter([tmp_path]))
    monkeypatch.setattr(compiled, "_used", set())
    compiled.njit(cache=True)(finalise.py_func)
    (folder,) = (tmp_path / "stream_scorer").iterdir()
    # Another process that starts, and this one while it runs.
    os.utime(folder, (1.0, 1.0))
    monkeypatch.setattr(compiled, "_used", set())
    compiled.njit(cache=True)(finalise.py_func)
    assert time.time() - folder.stat().st_mtime < 60
    os.utime(folder, (1.0, 1.0))
    CacheCleanup(tmp_path / "models", list, SystemClock()).step()
    assert time.time() - folder.stat().st_mtime < 60
