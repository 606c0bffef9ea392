"""Makes structs safe to decode in several threads."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


def prepare(namespace: Mapping[str, object]) -> None:
    """Let msgspec describe every struct of a module. A module calls this at its end, with ``globals()``.

    Otherwise msgspec describes a type at its first use, step by step. A thread that decodes the type in the meantime
    reads a null pointer and crashes the process (msgspec 0.22). An import runs in one thread, and others wait for it.
    """
    for kind in namespace.values():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == namespace["__name__"]:
            msgspec.json.Decoder(kind)
