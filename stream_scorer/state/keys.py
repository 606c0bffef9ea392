"""The keys of feature rows in Redis: the only definition of their layout.

A namespace is a hash tag, so all of its keys are in one cluster slot. Under a namespace ``{ns}``:

- ``{ns}:epoch``: the current epoch, that is, the generation of rows that scorers use. A loss of data begins a new one,
  so rows of before the loss cannot mix with rows of after it.
- ``{ns}:building``: the epoch that a process builds beside the current one and that will replace it. The key expires
  after `BUILDING_MS` unless the process refreshes it; then the epoch belongs to nobody.
- ``{ns}:used``: who uses the namespace. The key expires after `UNUSED_MS` unless a scorer refreshes it.
- ``{ns}:turn``: a scorer has deleted expired rows a short time ago.
- ``{ns}:expiry``: ``refused`` or ``done``, the result of the last pass that deletes expired rows.
- ``{ns}:probe``: a scorer has tried whether Redis accepts writes.
- ``{ns}:<epoch>:mark:<topic>:<partition>``: the applied offsets, see `row_format.APPLIED`.
- ``{ns}:<epoch>:beginning``: ``<transactions>:<labels>``, see `rows.Beginning`; absent if the rows lack nothing.
- ``{ns}:<epoch>:passed``: the event time that all partitions have passed except idle ones, see `rows.AppliedOffsets`.
- ``{ns}:<epoch>:r:<row key>``: a row, see `row_format`.
- ``{ns}:<epoch>:seen:<period>:<bucket>``: a set of witnesses, which are hashes of row keys. A row that is missing but
  has a witness in a period within the horizon was lost. A row that never existed has none.
- ``{ns}:<epoch>:retired``: keys of rows that expired a short time ago.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import xxhash

from stream_scorer.positions import SourcePartition
from stream_scorer.state.row_format import LAYOUT_VERSION

# What the namespaces of all scorers begin with, inside the braces of the hash tag.
NAMESPACES = "stream-scorer:rows:"
UNUSED_MS = 30 * 86_400_000
# Much longer than a process that builds an epoch is ever silent.
BUILDING_MS = 15 * 60_000
# Redis stores a set of at most 512 integers compactly: enough for four million rows per period.
WITNESS_BUCKETS = 8_192

_NAMESPACE = re.compile(rb"\{" + re.escape(NAMESPACES.encode()) + rb"[0-9a-f]{16}(/[0-9.]+)?\}:")


def rows_namespace(group: str, rows_hash: str, topic_ids: Sequence[str], id_key: str = "") -> str:
    """The namespace of the rows of `group` for a spec and input topics. It is short because every key begins with it.

    `rows_hash` is that of the spec (`CheckedSpec.rows_hash`): rows that are filled or cut otherwise are other rows.
    `id_key` identifies the secret of hashed ids (`Pseudonyms.fingerprint`): with another one, all rows have other keys.
    Another layout of rows gets another namespace too: rows of two layouts share neither applied offsets nor witnesses.
    """
    owner = "\n".join((group, rows_hash, *topic_ids, f"layout {LAYOUT_VERSION}", *([id_key] if id_key else [])))
    return NAMESPACES + hashlib.sha256(owner.encode()).hexdigest()[:16]


def key_hash(key: bytes) -> int:
    """63 bits of a hash of a row key: Redis stores sets of such integers in 8 bytes each."""
    return xxhash.xxh3_64_intdigest(key) >> 1


class NamespaceKeys:
    """The keys of one namespace that do not depend on the epoch. `tag` is what all of its keys begin with."""

    def __init__(self, namespace: str) -> None:
        self.tag = b"{" + namespace.encode() + b"}:"
        self.epoch = self.tag + b"epoch"
        self.building = self.tag + b"building"
        self.used = used_key(self.tag)
        self.turn = self.tag + b"turn"
        self.expiry = self.tag + b"expiry"
        self.probe = self.tag + b"probe"

    @property
    def permanent(self) -> tuple[bytes, ...]:
        """The keys that belong to no epoch."""
        return self.epoch, self.building, self.used, self.turn, self.expiry, self.probe

    def of_epoch(self, epoch: bytes) -> bytes:
        """What all keys of `epoch` begin with."""
        return self.tag + epoch + b":"


class EpochKeys:
    """The keys of one epoch.

    Attributes:
        namespace: the keys beside it. epoch: its name, empty for none.
        rows: what the keys of rows begin with. witnesses: what the keys of witness sets begin with.
        applied: the key of the applied offsets of each source partition. expired: the key of the set of expired rows.
        beginning: the key of the times from where on the rows are complete; absent if they are complete altogether.
        passed: the key of the event time that all partitions have passed except idle ones; absent until the first pass.
    """

    def __init__(self, namespace: NamespaceKeys, epoch: bytes, sources: Sequence[SourcePartition]) -> None:
        prefix = namespace.of_epoch(epoch)
        self.namespace = namespace
        self.epoch = epoch
        self.rows = prefix + b"r:"
        self.witnesses = prefix + b"seen:"
        self.expired = prefix + b"retired"
        self.beginning = prefix + b"beginning"
        self.passed = prefix + b"passed"
        self.applied = {s: prefix + f"mark:{s.topic}:{s.partition}".encode() for s in sources}

    def witness(self, period: int, hashed: int) -> bytes:
        """The witness set for a row key with the hash `hashed` in a period."""
        return self.witnesses + b"%d:%d" % (period, hashed % WITNESS_BUCKETS)

    def period_of(self, key: bytes) -> int | None:
        """The period of a witness set; None if `key` is no witness set of this epoch."""
        if not key.startswith(self.witnesses):
            return None
        return int(key[len(self.witnesses) :].partition(b":")[0])


def used_key(tag: bytes) -> bytes:
    """The key that scorers refresh while they use the namespace with this tag."""
    return tag + b"used"


def by_namespace(keys: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """The keys that belong to a scorer's namespace, by the tag of the namespace."""
    found: dict[bytes, list[bytes]] = {}
    for key in keys:
        tag = _NAMESPACE.match(key)
        if tag:
            found.setdefault(tag[0], []).append(key)
    return found


def starting_with(prefix: bytes) -> bytes:
    """A Redis pattern that matches exactly the keys that begin with `prefix`."""
    return re.sub(rb"([\\*?\[\]^-])", rb"\\\1", prefix) + b"*"
