"""Formatted storage of a Kafka broker, kept and copied, because Kafka's tool takes a second of CPU time to format it.

Formatted storage is two files: `meta.properties` with the ids of the cluster and of the folder, which are new in each
copy, and `bootstrap.checkpoint` with the feature levels of the jars. See KIP-631 and KIP-858.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path

META, CHECKPOINT = "meta.properties", "bootstrap.checkpoint"
_ID = re.compile(r"^(cluster\.id|directory\.id)=.*$", re.MULTILINE)


def new_id() -> str:
    """A random id of Kafka: 22 characters of URL-safe base64."""
    # "A" in front: an id that begins with "-" reads as an option.
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


def keep_storage(data: Path, kept: Path) -> None:
    """Copy what was formatted in `data` to `kept`, unless another process did, or the storage has other files."""
    if {file.name for file in data.iterdir()} != {META, CHECKPOINT}:
        return
    with tempfile.TemporaryDirectory(prefix=".formatted-", dir=kept.parent) as temporary:
        copy = shutil.copytree(data, Path(temporary, kept.name))
        try:
            os.rename(copy, kept)
        except OSError:  # it exists
            return


def copy_storage(kept: Path, data: Path) -> bool:
    """Write formatted storage with new ids to `data`, which does not exist. False if there is none in `kept`."""
    try:
        meta, checkpoint = (kept / META).read_text(), (kept / CHECKPOINT).read_bytes()
    except OSError:
        return False
    meta, ids = _ID.subn(lambda found: f"{found[1]}={new_id()}", meta)
    if ids != 2 or not checkpoint:  # as after a power failure
        return False
    data.mkdir(parents=True)
    (data / CHECKPOINT).write_bytes(checkpoint)
    (data / META).write_text(meta)  # last: storage without it is formatted again
    return True
