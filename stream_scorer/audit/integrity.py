"""Checks that the files of an archive are those that were sealed: digests, blocks, offsets and the hash chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stream_scorer.audit.archive import MODELS, Archive
from stream_scorer.audit.files import file_digest
from stream_scorer.audit.findings import Findings
from stream_scorer.audit.parts import PartReader
from stream_scorer.audit.seal import SEAL_FILE, ArchivedVersion, Block, Chain, Part, Seal, read_seal, record_digests
from stream_scorer.audit.signature import SIGNATURE_FILE
from stream_scorer.ensemble.manifest import manifest_digest, read_manifest, read_members
from stream_scorer.errors import ArtifactError, UsageError
from stream_scorer.serde.raw import RawRecords

# What every scored partition has.
_DECISIONS = ("lineage", "contributions", "scores")


class Integrity:
    """Checks the files of `archive` against its seal. Differences go to `findings`.

    `on_progress` is called with the number of records so far.
    """

    def __init__(self, archive: Archive, findings: Findings, on_progress: Callable[[int], None] | None = None) -> None:
        self._archive, self._seal, self._root = archive, archive.seal, archive.folder
        self._findings, self._on_progress = findings, on_progress
        self._done = 0

    def check(self) -> None:
        """Check everything."""
        self._check_seal()
        chain = Chain(self._seal.previous)
        for part in self._seal.parts:
            self._check_part(part, chain)
        if chain.value != self._seal.chain:
            self._findings.add("seal", f"{SEAL_FILE}: the hash chain ends with another hash than the seal states")
        for version in self._seal.versions:
            self._check_version(version)
        self._check_unknown()

    def _check_seal(self) -> None:
        seal, digest, in_form, unknown = read_seal(self._root)
        if digest != seal.digest:
            self._findings.add("seal", f"{SEAL_FILE} was altered: its content does not have the digest that it states")
        elif not in_form:
            self._findings.add("seal", f"{SEAL_FILE} was altered: it is not in the form in which it was written")
        elif unknown:
            what = f"the fields {', '.join(unknown)} of {SEAL_FILE} are not checked"
            self._findings.note(f"{what}: the archive was made by a newer release")

    def _check_part(self, part: Part, chain: Chain) -> None:
        counted = sum(block.records for block in part.blocks)
        if part.records != counted or bool(part.file) != bool(part.blocks):
            self._findings.add(
                "seal", f"{part.title}: the seal states {part.records:,} records, but blocks with {counted:,}"
            )
        if not part.file:
            return
        try:
            size, digest = file_digest(self._root / part.file)
            if (size, digest) != (part.bytes, part.sha256):
                self._findings.add("file", f"{part.title}: the file {part.file} was altered (SHA-256 {digest[:12]}… "
                                   f"instead of {part.sha256[:12]}…)")  # fmt: skip
            with PartReader(self._root, part) as reader:
                self._check_blocks(part, reader, chain)
        except UsageError as error:
            self._findings.add("file", f"{part.title}: {error.message}")
            if part.blocks:
                chain.skip_to(part.blocks[-1].chain)

    def _check_blocks(self, part: Part, reader: PartReader, chain: Chain) -> None:
        """Compare the blocks of the file with those of the seal, from offset to offset."""
        expected = iter(enumerate(part.blocks, 1))
        current = next(expected, None)
        for number in range(reader.blocks):
            try:
                records = reader.read(number)
            except UsageError as error:
                self._findings.add("block", f"{part.title}: block {number + 1} cannot be read: {error.message}")
                current = self._pass(current, chain, expected)
                continue
            while current is not None and len(records) and current[1].last_offset < records.offset.min():
                self._findings.add("block", f"{part.title}: block {_name(*current)} is missing")
                current = self._pass(current, chain, expected)
            if current is None:
                self._findings.add("block", f"{part.title}: {len(records):,} records follow the last block of the seal")
                return
            self._check_block(part, *current, records, chain)
            current = next(expected, None)
            self._done += len(records)
            if self._on_progress is not None:
                self._on_progress(self._done)
        while current is not None:
            self._findings.add("block", f"{part.title}: block {_name(*current)} is missing")
            current = self._pass(current, chain, expected)

    def _pass(
        self, current: tuple[int, Block] | None, chain: Chain, rest: Iterator[tuple[int, Block]]
    ) -> tuple[int, Block] | None:
        """The next block of the seal; the chain continues after the one that is passed over."""
        if current is not None:
            chain.skip_to(current[1].chain)
        return next(rest, None)

    def _check_block(self, part: Part, number: int, block: Block, records: RawRecords, chain: Chain) -> None:
        found = chain.add(part.topic, records) if len(records) else ""
        if found == block.chain:
            self._check_order(part, number, block, records)
            return
        chain.skip_to(block.chain)
        name = _name(number, block)
        if len(records) != block.records:
            what = f"it has {len(records):,} of {block.records:,} records"
        elif (backward := _first_backward(records)) is not None:
            what = (
                f"offset {records.offset[backward]} follows {records.offset[backward - 1]}: its records were reordered"
            )
        else:
            what = "a record was altered, or an earlier block was replaced"
        self._findings.add("block", f"{part.title}: block {name} is not what was sealed: {what}")

    def _check_order(self, part: Part, number: int, block: Block, records: RawRecords) -> None:
        """Check what the seal states about a block that has the right hash."""
        first, last = int(records.offset[0]), int(records.offset[-1])
        stated = (block.first_offset, block.last_offset, block.records, block.gaps, block.newest)
        actual = (first, last, len(records), last - first + 1 - len(records), int(records.timestamp.max()))
        if stated != actual:
            self._findings.add("block", f"{part.title}: the seal states other offsets or counts of block {number}")
        if (backward := _first_backward(records)) is not None:
            self._findings.add(
                "block", f"{part.title}: offset {records.offset[backward]} follows {records.offset[backward - 1]}"
            )
        if first < part.start or last >= part.stop:
            self._findings.add(
                "block", f"{part.title}: block {number} has offsets outside of {part.start}..{part.stop - 1}"
            )

    def _check_version(self, version: ArchivedVersion) -> None:
        """Check the files of a version against the seal and against its manifest."""
        name = f"{version.ensemble} {version.version}"
        for file in version.files:
            try:
                size, digest = file_digest(self._root / file.path)
            except UsageError as error:
                self._findings.add("model", f"{name}: {error.message}")
                continue
            if (size, digest) != (file.bytes, file.sha256):
                self._findings.add("model", f"{name}: {file.path} was exchanged (SHA-256 {digest[:12]}… instead of "
                                   f"{file.sha256[:12]}…)")  # fmt: skip
        if not version.files:
            self._findings.note(f"the archive has no manifest of {name}")
            return
        folder = self._root / MODELS / version.manifest_sha256
        try:
            manifest = read_manifest(folder)
            if manifest_digest(manifest) != version.manifest_sha256:
                self._findings.add("model", f"{name}: its manifest is not the one that decided")
            if len(version.files) > 1:
                read_members(folder, manifest)
        except ArtifactError as error:
            self._findings.add("model", f"{name}: {error.message}")

    def _check_unknown(self) -> None:
        """Report files that are not in the seal."""
        known = {SEAL_FILE, SIGNATURE_FILE, *(part.file for part in self._seal.parts)}
        known |= {file.path for version in self._seal.versions for file in version.files}
        for path in sorted(self._root.rglob("*")):
            name = str(path.relative_to(self._root))
            if not path.is_dir() and name not in known:
                self._findings.add("file", f"{name} does not belong to the archive")


def check_previous(archive: Archive, folder: Path, findings: Findings) -> None:
    """Check that `archive` continues the one in `folder`: digest, offsets, and the commands of `control`."""
    previous = Archive(folder)
    seal, before = archive.seal, previous.seal
    if previous.stored.digest != before.digest:
        findings.add("previous", f"{folder}: its seal was altered")
    if seal.previous != before.digest:
        findings.add("previous", f"this archive continues {seal.previous[:12] or 'none'}…, not {before.digest[:12]}…")
    for part in seal.parts:
        ended = previous.part(part.topic, part.partition)
        if ended is None or part.topic in ("control", "audit", "serving_state", "incidents", "transactions"):
            continue
        if part.start != ended.stop:
            findings.add(
                "previous", f"{part.title} begins at offset {part.start}, but the previous archive ends at {ended.stop}"
            )
    for ended in before.parts:
        # The others may be absent: inputs that are gone, and topics of people and monitors.
        if ended.topic in _DECISIONS and archive.part(ended.topic, ended.partition) is None:
            findings.add("previous", f"{ended.title} is missing, but the previous archive has it up to {ended.stop}")
    for ended_input in before.inputs:
        if (ended_input.topic, ended_input.partition) not in {(each.topic, each.partition) for each in seal.inputs}:
            name = f"{ended_input.topic}[{ended_input.partition}]"
            findings.add("previous", f"{name} has no decisions, but the previous archive has them up to source offset "
                         f"{ended_input.next}")  # fmt: skip
    _check_starts(seal, before, findings)
    _check_prefix(archive, previous, findings)


def _check_starts(seal: Seal, before: Seal, findings: Findings) -> None:
    """Check that inputs go on where those of the previous archive end, or begin again as the seal states."""
    next_offset = {(each.topic, each.partition): each.next for each in before.inputs}
    for each in seal.inputs:
        ended = next_offset.get((each.topic, each.partition), each.first)
        if each.first > ended or (each.first < ended and not each.restarted):
            findings.add("previous", f"{each.topic}[{each.partition}] begins at source offset {each.first}, but the "
                         f"previous archive ends at {ended}")  # fmt: skip


def _check_prefix(archive: Archive, previous: Archive, findings: Findings) -> None:
    """Check that the commands of the previous archive are the first ones of this one."""
    digests = []
    for each in (previous, archive):
        part = each.part("control", 0)
        if part is None:
            findings.add("previous", f"{each.folder} has no commands")
            return
        source = next(iter(each.bounds(part.name)))
        digests.append(
            [
                one
                for records in each.read(source, part.start, part.stop)
                for one in zip(
                    records.offset.tolist(), records.timestamp.tolist(), record_digests(records), strict=True
                )
            ]
        )
    before, now = digests
    if now[: len(before)] != before:
        place = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), len(now))
        findings.add("previous", f"control: command number {place + 1} differs from that of the previous archive")


def _name(number: int, block: Block) -> str:
    return f"{number} (offsets {block.first_offset} to {block.last_offset}, {block.records:,} records)"


def _first_backward(records: RawRecords) -> int | None:
    """The first record whose offset is not above that of the one before it; None if all ascend."""
    wrong = np.flatnonzero(np.diff(records.offset) <= 0)
    return int(wrong[0]) + 1 if len(wrong) else None
