"""Keyed hashes that replace the ids of sensitive entities before an id is stored or published (ADR 0027)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from stream_scorer.errors import SettingsError

# A card number has about 50 bits, so whoever has the key, or can guess it, finds every number by trial.
MIN_KEY_LENGTH = 32
# 128 bits: no two ids of one deployment get the same hash.
_DIGEST_BYTES = 16
_SETTING = "scorer.id_key"


class Pseudonyms:
    """The replacement of the ids of `entities`; ids of all other entities stay as they are.

    The hash is BLAKE2b with a key (RFC 7693), 128 bits in hexadecimal digits.
    """

    def __init__(self, key: str, entities: frozenset[str], partition_entity: str | None) -> None:
        """`partition_entity` is the entity whose id is the record key.

        Raises:
            SettingsError: `entities` is not empty, and `key` is empty or shorter than `MIN_KEY_LENGTH`.
        """
        if entities and len(key) < MIN_KEY_LENGTH:
            problem = f"has fewer than {MIN_KEY_LENGTH} characters" if key else "is not set"
            raise SettingsError(
                f"{_SETTING} {problem}, and the spec has sensitive entities: {', '.join(sorted(entities))}",
                hint="Put a random secret, such as the output of `openssl rand -hex 32`, into a file, and set "
                "STREAM_SCORER_SCORER_ID_KEY_FILE to its path. All scorers of a group need the same one.",
            )
        self._entities = entities
        self._hides_keys = partition_entity in entities
        derived = hashlib.blake2b(key.encode(), person=b"stream-scorer-id").digest()
        self._start = hashlib.blake2b(key=derived, digest_size=_DIGEST_BYTES)
        self._derived = derived
        # Tells keys apart without disclosing them. Empty if no id depends on the key.
        self.fingerprint = hashlib.blake2b(derived, digest_size=8).hexdigest() if entities else ""

    def of(self, entity: str, identifier: str) -> str:
        """`identifier`, or its hash if `entity` is sensitive."""
        return self._hash(identifier.encode()) if entity in self._entities else identifier

    def column(self, entity: str, ids: list[str | None]) -> list[str | None]:
        """`ids`, or their hashes if `entity` is sensitive. Hashes each distinct id once; None stays None."""
        if entity not in self._entities:
            return ids
        known: dict[str | None, str | None] = {i: self._hash(i.encode()) for i in set(ids) if i is not None}
        return [known.get(i) for i in ids]

    def record_keys(self, keys: list[bytes | None]) -> Sequence[bytes | None]:
        """The keys of output records for input records with `keys`: hashes if the partition entity is sensitive."""
        if not self._hides_keys:
            return keys
        known = {key: self._hash(key).encode() for key in set(keys) if key is not None}
        return [None if key is None else known[key] for key in keys]

    def short_hash(self, purpose: str) -> hashlib.blake2b:
        """The start of a 64-bit hash whose key depends on the secret and on `purpose`. Without a secret it hides less.

        Hashes of two purposes cannot be joined.
        """
        key = hashlib.blake2b(purpose.encode(), key=self._derived, digest_size=32).digest()
        return hashlib.blake2b(key=key, digest_size=8)

    def mixing_key(self, purpose: str) -> tuple[int, int]:
        """Two 64-bit numbers that depend on the secret and on `purpose`, to mix hashes of ids with."""
        digest = hashlib.blake2b(purpose.encode(), key=self._derived, digest_size=16).digest()
        return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")

    def _hash(self, identifier: bytes) -> str:
        state = self._start.copy()
        state.update(identifier)
        return state.hexdigest()
