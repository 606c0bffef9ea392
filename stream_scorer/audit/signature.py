"""An optional signature over the digest of a seal, in a file next to it.

The key file decides the algorithm: a PEM file is an Ed25519 key (RFC 8032), any other text is a secret of HMAC-SHA256.
A public key in another form is refused, because as a secret it would let everyone who has it sign.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from stream_scorer.audit.files import writable
from stream_scorer.audit.findings import Findings
from stream_scorer.audit.seal import Seal
from stream_scorer.errors import SettingsError, UsageError, install_hint
from stream_scorer.records import Record

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_FILE = "signature.json"
MIN_KEY_BYTES = 32
_MAX_FILE_BYTES = 65_536
_CONTEXT = b"stream-scorer audit signature 1\n"
_PEM = b"-----BEGIN"
_BOM = b"\xef\xbb\xbf"
# How SSH public keys begin (RFC 4253), and an Ed25519 public key in base64 without the lines of a PEM file (RFC 8410).
_PUBLIC = re.compile(rb"^(ssh-|ecdsa-sha2-|sk-ssh-|sk-ecdsa-|MCowBQYDK2VwAyEA)", re.MULTILINE)
_TEXT = re.compile(rb"[\x20-\x7e\s]*")
_SHOWS = {
    "ed25519": "valid (Ed25519): the holder of the private key sealed this archive",
    "hmac-sha256": "valid (HMAC-SHA256): a holder of the secret sealed this archive",
}


class Signature(Record, frozen=True):
    """What `signature.json` holds: the signature of `digest`, in hexadecimal digits."""

    algorithm: Literal["hmac-sha256", "ed25519"]
    digest: str
    signature: str


class Key:
    """The key in a file.

    Raises:
        UsageError: it cannot be read, is too short, or has another form.
        SettingsError: an Ed25519 key needs cryptography.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._data = file.read(_MAX_FILE_BYTES + 1).removeprefix(_BOM).strip()
        except OSError as error:
            raise UsageError(f"cannot read the key {path}: {error.strerror or error}") from None
        if not MIN_KEY_BYTES <= len(self._data) <= _MAX_FILE_BYTES:
            raise UsageError(
                f"the key {path} has {len(self._data)} bytes; {MIN_KEY_BYTES} to {_MAX_FILE_BYTES} are required",
                hint="Create a secret (openssl rand -hex 32) or a key pair (openssl genpkey -algorithm ed25519).",
            )
        self._is_pem = _PEM in self._data
        if self._is_pem:
            self._data = self._data[self._data.index(_PEM) :]
        elif not _TEXT.fullmatch(self._data) or _PUBLIC.search(self._data):
            raise UsageError(
                f"the key {path} is neither a PEM file nor a secret of printable characters",
                hint="Create a key pair (openssl genpkey -algorithm ed25519), or convert a DER file "
                "(openssl pkey -inform DER -pubin -in KEY).",
            )
        if self._is_pem and find_spec("cryptography") is None:
            raise SettingsError("Ed25519 keys need cryptography", hint=install_hint("audit"))

    def sign(self, digest: str) -> Signature:
        """The signature of `digest`. Raises `UsageError` if this is not a private key."""
        if not self._is_pem:
            return Signature("hmac-sha256", digest, self._hmac(digest))
        signature = self._private().sign(_CONTEXT + digest.encode())
        return Signature("ed25519", digest, signature.hex())

    def fits(self, signature: Signature, digest: str) -> bool:
        """Whether `signature` is a signature of `digest` with this key."""
        if signature.digest != digest or self._is_pem != (signature.algorithm == "ed25519"):
            return False
        if not self._is_pem:
            return hmac.compare_digest(signature.signature.encode(), self._hmac(digest).encode())
        from cryptography.exceptions import InvalidSignature

        try:
            self._public().verify(bytes.fromhex(signature.signature), _CONTEXT + digest.encode())
        except (InvalidSignature, ValueError):
            return False
        return True

    def _hmac(self, digest: str) -> str:
        return hmac.new(self._data, _CONTEXT + digest.encode(), hashlib.sha256).hexdigest()

    def _private(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(self._data, None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{self._path} is not an unencrypted Ed25519 private key")
        return key

    def _public(self) -> Ed25519PublicKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        if b"PRIVATE" in self._data[:64]:
            return self._private().public_key()
        try:
            key = load_pem_public_key(self._data)
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"{self._path} is not an Ed25519 public key")
        return key


def sign(folder: Path, seal: Seal, key: Key) -> None:
    """Write the signature of `seal` into the archive in `folder`. Raises `UsageError` if it cannot be written."""
    signature = msgspec.json.encode(key.sign(seal.digest)) + b"\n"
    with writable(folder / SIGNATURE_FILE):
        (folder / SIGNATURE_FILE).write_bytes(signature)


def check_signature(folder: Path, digest: str, key: Key | None, findings: Findings) -> str:
    """Check the signature of a seal that has `digest` with `key`, and return in words what it shows."""
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
    if not key.fits(found, digest):
        findings.add("signature", f"{SIGNATURE_FILE} is not a signature of this seal with this key")
        return "not valid"
    return _SHOWS[found.algorithm]
