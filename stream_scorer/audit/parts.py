"""The files of an archive: one Parquet file per partition, one row group per block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_scorer.audit.files import file_digest, writable
from stream_scorer.audit.seal import Block, Chain, Content, Part
from stream_scorer.errors import UsageError
from stream_scorer.parquet import readable
from stream_scorer.serde.raw import RawRecords

# What bounds the memory of export and checks: lineage records have up to 900 KB each.
BLOCK_RECORDS = 10_000
BLOCK_BYTES = 16_000_000
# A record has at most 10 MB (`kafka.config.MAX_MESSAGE_BYTES`), so no block of ours unpacks to more.
_MAX_UNPACKED = BLOCK_BYTES + 64_000_000
_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field("headers", pa.map_(pa.string(), pa.binary())),
    ]
)


class PartWriter:
    """Writes the records of one partition to a file of the archive in `root`, and continues `chain` over them."""

    def __init__(
        self, root: Path, chain: Chain, topic: str, name: str, partition: int, content: Content = "records"
    ) -> None:
        self._root, self._chain = root, chain
        self._topic, self._name, self._partition, self._content = topic, name, partition, content
        self._file = f"topics/{topic}/{partition}.parquet"
        self._writer: Any = None
        self._pending = RawRecords.empty(name)
        self._pending_bytes = 0
        self._blocks: list[Block] = []

    def add(self, records: RawRecords) -> None:
        """Append records, in the order of their offsets. Raises `UsageError` if the file cannot be written."""
        if not len(records):
            return
        self._pending = self._pending.concatenate(records) if len(self._pending) else records
        self._pending_bytes += int(_sizes(records).sum())
        while len(self._pending) >= BLOCK_RECORDS or self._pending_bytes >= BLOCK_BYTES:
            self._write_block()

    def close(self, start: int, stop: int) -> Part:
        """Finish the file, which has the offsets ``[start, stop)`` of the partition."""
        while len(self._pending):
            self._write_block()
        if self._writer is None:
            return Part(self._topic, self._name, self._partition, self._content, start, stop, 0, "", 0, "", [])
        path = self._root / self._file
        with writable(path):
            self._writer.close()
        size, digest = file_digest(path)
        count = sum(block.records for block in self._blocks)
        return Part(
            self._topic, self._name, self._partition, self._content, start, stop, count, self._file, size, digest,
            self._blocks,
        )  # fmt: skip

    def _write_block(self) -> None:
        sizes = np.cumsum(_sizes(self._pending))
        n = int(np.searchsorted(sizes, BLOCK_BYTES, side="right"))
        n = min(max(n, 1), BLOCK_RECORDS, len(self._pending))
        block = self._pending.take(np.arange(n))
        self._pending = self._pending.take(np.arange(n, len(self._pending)))
        self._pending_bytes -= int(sizes[n - 1])
        path = self._root / self._file
        with writable(path):
            if self._writer is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(
                    path, _SCHEMA, compression="zstd", use_dictionary=False, write_page_checksum=True
                )
            self._writer.write_table(_table(block), row_group_size=n)
        first, last = int(block.offset[0]), int(block.offset[-1])
        self._blocks.append(
            Block(first, last, n, last - first + 1 - n, int(block.timestamp.max()), self._chain.add(self._topic, block))
        )


class PartReader:
    """Reads the blocks of a part. A context manager. Raises `UsageError` if the file is not that of a part."""

    def __init__(self, root: Path, part: Part) -> None:
        self._path, self._part = root / part.file, part
        with readable(self._path):
            self._file = pq.ParquetFile(self._path, page_checksum_verification=True, memory_map=False)
        if not self._file.schema_arrow.equals(_SCHEMA):
            self._file.close()
            raise UsageError(f"{self._path} is not a part of an archive: it has other columns")

    @property
    def blocks(self) -> int:
        """The number of blocks in the file, which may differ from the seal."""
        return int(self._file.num_row_groups)

    def read(self, block: int) -> RawRecords:
        """The records of one block."""
        if self._file.metadata.row_group(block).total_byte_size > _MAX_UNPACKED:
            raise UsageError(f"{self._path}: block {block + 1} is larger than any that this program writes")
        with readable(self._path):
            table = self._file.read_row_group(block, use_threads=False)
        return _records(self._part, table)

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_part(root: Path, part: Part, first: int = 0) -> Iterator[RawRecords]:
    """The blocks of `part` from number `first` on. Raises `UsageError` if the file is not that of a part."""
    if not part.file:
        return
    with PartReader(root, part) as reader:
        for block in range(first, reader.blocks):
            yield reader.read(block)


def _sizes(records: RawRecords) -> Any:
    """(n,) int64: bytes of keys and values."""
    keys, values = (
        np.fromiter((len(each or b"") for each in column), np.int64, len(records))
        for column in (records.key, records.value)
    )
    return keys + values


def _table(records: RawRecords) -> Any:
    headers = [list(each) if each else None for each in records.headers]
    return pa.table(
        [
            pa.array(records.offset, pa.int64()),
            pa.array(records.timestamp, pa.int64()),
            pa.array(records.key, pa.binary()),
            pa.array(records.value, pa.binary()),
            pa.array(headers, _SCHEMA.field("headers").type),
        ],
        schema=_SCHEMA,
    )


def _records(part: Part, table: Any) -> RawRecords:
    n = len(table)
    return RawRecords(
        part.name,
        np.full(n, part.partition, np.int32),
        table["offset"].to_numpy(),
        table["timestamp"].to_numpy(),
        table["key"].to_pylist(),
        table["value"].to_pylist(),
        table["headers"].to_pylist(),
    )
