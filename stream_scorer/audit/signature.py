"""An optional signature over the digest of a seal, in a file beside it."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Literal

import msgspec

from stream_scorer.audit.findings import Findings
from stream_scorer.audit.seal import Seal
from stream_scorer.errors import UsageError
from stream_scorer.records import Record

SIGNATURE_FILE = "signature.json"
MIN_KEY_BYTES = 32
_MAX_KEY_BYTES = 65_536
_CONTEXT = b"stream-scorer audit signature 1\n"


class Signature(Record, frozen=True):
    """What `signature.json` holds: the signature of `digest`, in hexadecimal digits."""

    algorithm: Literal["hmac-sha256"]
    digest: str
    signature: str


def read_key(path: Path) -> bytes:
    """The secret in `path`. Raises `UsageError` if it cannot be read or is shorter than `MIN_KEY_BYTES`."""
    try:
        with path.open("rb") as file:
            key = file.read(_MAX_KEY_BYTES + 1).strip()
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror or error}") from None
    if not MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise UsageError(
            f"the key {path} has {len(key)} bytes; {MIN_KEY_BYTES} to {_MAX_KEY_BYTES} are required",
            hint="Create one: openssl rand -hex 32 > audit.key",
        )
    return key


def sign(folder: Path, seal: Seal, key: bytes) -> None:
    """Write the signature of `seal` into the archive in `folder`. Raises `UsageError` if it cannot be written."""
    signature = Signature("hmac-sha256", seal.digest, _hmac(seal.digest, key))
    try:
        (folder / SIGNATURE_FILE).write_bytes(msgspec.json.encode(signature) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write {folder / SIGNATURE_FILE}: {error.strerror or error}") from None


def check_signature(folder: Path, seal: Seal, key: bytes | None, findings: Findings) -> str:
    """Check the signature with `key`, and return in words what it shows."""
    path = folder / SIGNATURE_FILE
    if not path.exists():
        if key is not None:
            findings.add("signature", f"the archive has no {SIGNATURE_FILE}, but a key was given")
        return "not signed: compare the digest with one that was kept elsewhere (--expect)"
    if key is None:
        return "signed, but not checked: no key was given (--key)"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Signature)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        findings.add("signature", f"{SIGNATURE_FILE} cannot be read: {error}")
        return "not valid"
    if found.digest != seal.digest or not hmac.compare_digest(
        found.signature.encode(), _hmac(seal.own_digest(), key).encode()
    ):
        findings.add("signature", f"{SIGNATURE_FILE} is not a signature of this seal with this key")
        return "not valid"
    return "valid: a holder of the key sealed this archive"


def _hmac(digest: str, key: bytes) -> str:
    return hmac.new(key, _CONTEXT + digest.encode(), hashlib.sha256).hexdigest()
