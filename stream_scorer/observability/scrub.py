"""Removes secrets from text that reaches logs, messages and topics."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"
_USER_INFO = re.compile(r"(?<=://)[^\s/?#'\"]*@")


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without `secrets`, and without user and password in every address (``scheme://user:password@host``)."""
    if "://" in text:
        text = _USER_INFO.sub(f"{HIDDEN}@", text)
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text
