"""The seal of an archive: what its files contain, and a hash chain over all records.

    H_0 = SHA-256("stream-scorer audit 1" || digest of the previous archive)
    H_i = SHA-256(H_{i-1} || block i)

The blocks follow each other in the order of the parts, and within a part in the order of offsets. The digest of the
seal covers the last hash and everything else in `seal.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from stream_scorer.errors import CheckFailed, UsageError
from stream_scorer.records import Record
from stream_scorer.serde.raw import Headers, RawRecords

SEAL_FILE = "seal.json"
FORMAT = 1
MAX_SEAL_BYTES = 500_000_000
_GENESIS = b"stream-scorer audit 1"

# A path within the archive: without ``..``, so that a foreign seal cannot name files elsewhere.
ArchivePath = Annotated[str, msgspec.Meta(pattern=r"^(topics|ensembles)(/(?!\.\.?(/|\Z))[A-Za-z0-9._-]+)+\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
# "records": as they are on the topic. "digests": `value` is the SHA-256 of the record, and the key is absent.
Content = Literal["records", "digests"]


class Block(Record, frozen=True):
    """Consecutive records of a part: one row group of its file.

    `gaps` is the number of offsets between the first and the last one that have no record (transaction markers and
    aborted records). `newest` is the newest timestamp, ms. `chain` is the hash after this block.
    """

    first_offset: int
    last_offset: int
    records: int
    gaps: int
    newest: int
    chain: Digest


class Part(Record, frozen=True):
    """The records of one partition with offsets in ``[start, stop)``; `file` is empty if there are none.

    `topic` is the key of the topic in `stream_scorer.settings.TOPICS`, `name` its name on the brokers.
    """

    topic: str
    name: str
    partition: int
    content: Content
    start: int
    stop: int
    records: int
    file: Annotated[str, msgspec.Meta(pattern=r"^(topics/[a-z_]+/[0-9]+\.parquet)?\Z")]
    bytes: int
    sha256: str
    blocks: list[Block]

    @property
    def title(self) -> str:
        """The part in messages: ``scores[3]``."""
        return f"{self.topic}[{self.partition}]"


class InputRange(Record, frozen=True):
    """The offsets ``[first, next)`` of one input partition whose decisions the archive has.

    The part of the inputs goes on after `next` with those that arrived in the period and were not decided in it.

    `restarted`: it begins below the end of the previous archive, because Kafka lost records of the input or the
    consumer group was reset.

    `listed`: whether the archive has the offsets of the input records, so that it can be checked that none is missing.
    """

    topic: str
    partition: int
    first: int
    next: int
    listed: bool
    restarted: bool = False


class SealedFile(Record, frozen=True):
    """A file of the archive other than a part."""

    path: ArchivePath
    bytes: int
    sha256: Digest


class ArchivedVersion(Record, frozen=True):
    """A version that decided transactions of the period. `files` has its manifest, and its models if they are kept."""

    ensemble: str
    version: str
    manifest_sha256: Digest
    files: list[SealedFile]


class Seal(Record, frozen=True, kw_only=True):
    """What `seal.json` holds; `digest` is the SHA-256 of all other fields.

    Times are epoch ms: the period is ``[since, until)`` by the timestamps of the lineage, `since` is null for the
    beginning of the topics. `previous` is the digest of the archive before this one, empty without one.
    """

    format: int = FORMAT
    created_at: int
    code_version: str
    since: int | None
    until: int
    previous: str
    spec_hashes: list[str]
    scorer_versions: list[str]
    inputs: list[InputRange]
    versions: list[ArchivedVersion]
    parts: list[Part]
    chain: str
    digest: str = ""

    def closed(self) -> Seal:
        """The same with its digest."""
        content = msgspec.json.encode(msgspec.structs.replace(self, digest=""))
        return msgspec.structs.replace(self, digest=hashlib.sha256(content).hexdigest())

    def of_topic(self, topic: str) -> list[Part]:
        """The parts of the topic with the key `topic`, by partition."""
        return [part for part in self.parts if part.topic == topic]


def render(seal: Seal) -> bytes:
    """The bytes of `seal.json`."""
    return msgspec.json.format(msgspec.json.encode(seal), indent=1) + b"\n"


class SealFile(NamedTuple):
    """`seal.json` as it is stored.

    `digest` is computed again from the stored bytes, so that a release with other fields computes the same. `in_form`:
    it has the white space in which seals are written. `unknown` are the fields that this release does not know.
    """

    seal: Seal
    digest: str
    in_form: bool
    unknown: list[str]


class _Format(msgspec.Struct):
    """The part of a seal that every release reads first."""

    format: int = FORMAT


def read_seal(folder: Path) -> SealFile:
    """The seal of the archive in `folder`, unchecked.

    Raises:
        UsageError: there is no archive, or a newer release made it. CheckFailed: its seal is malformed.
    """
    path = folder / SEAL_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SEAL_BYTES + 1)
        made = msgspec.json.decode(data, type=_Format).format
        if made != FORMAT:
            raise UsageError(
                f"{path} has format {made}; this release reads format {FORMAT}",
                hint="A newer release made the archive: check it with that release." if made > FORMAT else "",
            )
        seal = msgspec.json.decode(data, type=Seal)
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        return SealFile(
            seal, _digest(data, seal.digest), msgspec.json.format(data, indent=1) + b"\n" == data,
            [name for name in fields if name not in Seal.__struct_fields__],
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"{folder} is not an archive: cannot read {path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckFailed(f"{path} was altered, or is not the seal of an archive: {error}") from None


def _digest(data: bytes, stated: str) -> str:
    """The SHA-256 of the stored seal without white space and without the digest that it states."""
    content = msgspec.json.format(data, indent=-1)
    own = b'"digest":%s' % msgspec.json.encode(stated)
    return hashlib.sha256(content.replace(own, b'"digest":""')).hexdigest()


class Chain:
    """The hash chain. `value` is the hash after the last block, in hexadecimal digits."""

    def __init__(self, previous: str) -> None:
        """`previous` is the digest of the archive before, empty without one."""
        self._hash = hashlib.sha256(_GENESIS + previous.encode()).digest()

    @property
    def value(self) -> str:
        return self._hash.hex()

    def add(self, topic: str, records: RawRecords) -> str:
        """Add the block `records` of one partition of `topic`, and return the hash after it."""
        state = hashlib.sha256(self._hash)
        for piece in _pieces(topic, records):
            state.update(piece)
        self._hash = state.digest()
        return self.value

    def skip_to(self, value: str) -> None:
        """Continue after a block that has the hash `value`; used after a block that differs, to judge the next one."""
        self._hash = bytes.fromhex(value)


def _pieces(topic: str, records: RawRecords) -> Iterator[bytes]:
    """The bytes of a block: columns with their lengths first, so that no two blocks have the same bytes."""
    yield f"{topic} {int(records.partition[0])} {len(records)}\n".encode()
    yield records.offset.astype("<i8").tobytes()
    yield records.timestamp.astype("<i8").tobytes()
    yield from _column(records.key)
    yield from _column(records.value)
    headers = [list(each or ()) for each in records.headers]
    yield np.array([len(each) for each in headers], "<i8").tobytes()
    yield from _column([name.encode() for each in headers for name, _ in each])
    yield from _column([value for each in headers for _, value in each])


def _column(values: Sequence[bytes | None]) -> Iterator[bytes]:
    yield np.array([-1 if value is None else len(value) for value in values], "<i8").tobytes()
    yield b"".join(value for value in values if value)


def record_digests(records: RawRecords) -> list[bytes]:
    """The SHA-256 (32 bytes) of each record's key, value and headers."""
    return [
        hashlib.sha256(_record(key, value, headers or ())).digest()
        for key, value, headers in zip(records.key, records.value, records.headers, strict=True)
    ]


def _record(key: bytes | None, value: bytes | None, headers: Headers) -> bytes:
    """Lengths first, so that no two records have the same bytes."""
    fields = [key, value, *(name.encode() for name, _ in headers), *(content for _, content in headers)]
    lengths = ",".join("-" if each is None else str(len(each)) for each in fields)
    return b"".join([lengths.encode(), b"\n", *filter(None, fields)])
