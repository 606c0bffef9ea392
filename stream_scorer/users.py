"""Who runs this process."""

from __future__ import annotations

import getpass
import os


def current_user() -> str:
    """The name of the user of this process, or ``uid 10001`` if it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
