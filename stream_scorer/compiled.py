"""numba's decorator `njit`, with a cache of machine code that depends on every file from which the code is made.

numba takes a compiled function from its cache for as long as the file that contains the function is the same. But the
machine code also contains functions and constants of other modules, and reads the fields of their named tuples. So each
module with compiled functions has a folder for each state of its own file and of all modules of this package that it
imports, directly or not. After an upgrade, what has changed is compiled again, and several releases can share a cache
(ADR 0055).

The folders are in ``NUMBA_CACHE_DIR``, or else in ``__pycache__`` of the package, or else in the user's cache, in a
folder of their own. If none of these can be written to, functions are compiled in every process.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numba
from numba.core import config as numba_config

if TYPE_CHECKING:
    from numba.core.dispatcher import Dispatcher

_log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., object])
# Its attributes are set when it is imported.
config: Any = numba_config

PACKAGE = "stream_scorer"
_ROOT = Path(__file__).parent
# A release has about 20 folders, so these are about ten releases. Others are removed if no process has used them for
# `KEEP_S`. A process marks its folders as used when it starts, and a scorer or monitor also while it runs.
MAX_FOLDERS = 200
KEEP_S = 3 * 86_400.0
_ASIDE = ".old-"
# An import at the beginning of a line, with its names in the same line or in parentheses. Indented ones are for type
# checkers, or in functions, which are not compiled then. To parse the files would take as long as all other imports.
_IMPORT = re.compile(rf"^from ({PACKAGE}[\w.]*) import (\([^)]*\)|[^(\n]+)", re.MULTILINE)

# numba reads the folder from its configuration when it decorates a function, and modules may be imported in threads.
_decorating = threading.Lock()
_used: set[Path] = set()


def njit(**options: Any) -> Callable[[F], Dispatcher[F]]:
    """``numba.njit(**options)``. With ``cache=True``, the cache is that of the present code; see the module."""

    def decorate(function: F) -> Dispatcher[F]:
        if options.get("cache"):
            with _decorating:
                for folder in _folders(function.__module__):
                    if (cached := _cached_in(folder, function, options)) is not None:
                        return cached
            _warn_once()
        loop: Dispatcher[F] = numba.njit(**options | {"cache": False})(function)
        return loop

    return decorate


def _cached_in(folder: Path, function: F, options: dict[str, Any]) -> Dispatcher[F] | None:
    """`function`, compiled when it is called, with its cache in `folder`; None if `folder` cannot be used."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        compiled = numba.njit(**options)(function)
    except RuntimeError:  # numba has found no folder at all
        return None
    finally:
        config.CACHE_DIR = before
    # Where numba cannot write to `folder`, it takes another one. With NUMBA_DISABLE_JIT, it returns the function.
    stats = getattr(compiled, "stats", None)
    return None if stats is not None and folder not in Path(stats.cache_path).parents else compiled


def mark_used() -> None:
    """Mark the folders that this process uses, so that no other process removes them."""
    for folder in tuple(_used):
        with contextlib.suppress(OSError):  # of another user
            os.utime(folder)


def sources(module: str) -> set[str]:
    """Names of `module` and of the modules of this package that it imports, directly or not."""
    found, open_ = set(), [module]
    while open_:
        name = open_.pop()
        if name not in found:
            found.add(name)
            open_ += _source(name)[1]
    return found


@cache
def code_hash(module: str) -> str:
    """16 hexadecimal digits that depend on the files of the `sources` of `module`."""
    digest = hashlib.sha256()
    for name in sorted(sources(module)):
        digest.update(f"{name}\n".encode() + _source(name)[0])
    return digest.hexdigest()[:16]


@cache
def _source(module: str) -> tuple[bytes, tuple[str, ...]]:
    """The digest of the file of `module`, and the modules of this package that it imports."""
    content = _file(module).read_bytes()
    return hashlib.sha256(content).digest(), tuple(_imports(content.decode()))


def _imports(text: str) -> Iterator[str]:
    for origin, names in _IMPORT.findall(text):
        found = {f"{origin}.{name}" for name in re.findall(r"\w+", names)}
        modules = {name for name in found if _file(name).exists()} if _file(origin).name == "__init__.py" else set()
        yield from modules
        if modules != found:
            yield origin


@cache
def _file(module: str) -> Path:
    path = _ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _folders(module: str) -> Iterator[Path]:
    """The folders for machine code of `module`, in order of preference, without those that cannot be made."""
    for base in _bases():
        folder = base / PACKAGE / f"{module.removeprefix(PACKAGE + '.')}-{code_hash(module)}"
        try:
            _enter(folder)
        except OSError:
            continue
        yield folder


def _bases() -> Iterator[Path]:
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR)
    yield _ROOT / "__pycache__"
    with contextlib.suppress(RuntimeError):  # a user without a home folder
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"


def _enter(folder: Path) -> None:
    """Make `folder`, or mark it as used. Raises `OSError`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        if folder not in _used:
            with contextlib.suppress(OSError):  # of another user
                os.utime(folder)
    else:
        remove_old(folder.parent, folder.stat().st_mtime)
    _used.add(folder)


def remove_old(parent: Path, now_s: float, max_folders: int = MAX_FOLDERS) -> None:
    """Remove the folders in `parent` beyond the `max_folders` used last, unless they were used within `KEEP_S`.

    Other processes may do the same: a folder is renamed before it is removed.
    """
    found = sorted(((_modified(path), path) for path in parent.iterdir()), reverse=True)
    for place, (modified, path) in enumerate(found):
        leftover = path.name.startswith(_ASIDE)
        if modified < now_s - KEEP_S and (leftover or place >= max_folders):
            with contextlib.suppress(OSError):  # another process has removed it
                aside = Path(tempfile.mkdtemp(dir=parent, prefix=_ASIDE))
                path.rename(aside / path.name)
                shutil.rmtree(aside, ignore_errors=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


@cache
def _warn_once() -> None:
    _log.warning("no folder for compiled code can be written to: it is compiled in every process. Set NUMBA_CACHE_DIR")
