"""Virtual environments for programs that this project must not depend on, built from locked requirement files.

They are kept below the git-ignored working folder, named by the hash of the requirement file, and built once.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from proofs.kit import ROOT, WORK

BUILD_S = 900.0


class NotInstalled(Exception):
    """The requirement file cannot be installed here; the text is the end of the installer's message."""


def environment(requirements: str) -> str:
    """The interpreter of an environment with the packages of ``requirements/<requirements>.txt``.

    Raises:
        NotInstalled: a package is not available for this interpreter, or the registry does not answer.
    """
    path = ROOT / "requirements" / f"{requirements}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(path.read_bytes() + version.encode()).hexdigest()[:12]
    place = WORK / "environments" / f"{requirements}-{digest}"
    python = place / "bin" / "python"
    if (place / "complete").exists():
        return str(python)
    shutil.rmtree(place, ignore_errors=True)
    uv = str(Path(sys.executable).with_name("uv"))
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(place)],
        [uv, "pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(path)],
    ):
        try:
            subprocess.run(command, check=True, timeout=BUILD_S, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise NotInstalled(" ".join(error.stderr.split())[-200:]) from None
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"not installed within {BUILD_S:.0f} s") from None
    (place / "complete").touch()
    return str(python)
