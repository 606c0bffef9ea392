"""Contribution records as they were before topic `lineage` existed: one JSON document with the whole lineage.

`verify` and `explain` still read them; nothing writes them.
"""

from __future__ import annotations

import msgspec

from stream_scorer.records import (
    Alternative,
    AppliedOffset,
    Contribution,
    LineageRow,
    Members,
    MemberStatus,
    SegmentThresholds,
    ShardOffset,
    Source,
)


class _Member(msgspec.Struct):
    name: str
    score: float | None
    weight: float
    contribution: float
    status: MemberStatus


class _Source(msgspec.Struct):
    topic: str
    partition: int
    offset: int
    place: int


class _FatContribution(msgspec.Struct):
    event_id: str
    ensemble: str
    version: str
    arm: str
    link: str
    base: float | None
    z: float | None
    score: float | None
    members: list[_Member]
    alternatives: list[Alternative]
    features: list[float | None]
    feature_status: list[int]
    feature_hash: str
    spec_hash: str
    source: _Source
    marks: list[AppliedOffset]
    code_version: str
    partitions_age: int | None = None
    labels_age: int | None = None
    marks_ahead: list[ShardOffset] = []
    control_offset: int | None = None
    thresholds: SegmentThresholds | None = None


_decode_fat = msgspec.json.Decoder(_FatContribution).decode
_decode = msgspec.json.Decoder(Contribution).decode


def decode_contribution(value: bytes) -> tuple[Contribution, LineageRow | None]:
    """A record of topic `contributions` in either form; the lineage that an old one carries itself.

    Raises `msgspec.DecodeError` for bytes that are neither.
    """
    try:
        return _decode(value), None
    except msgspec.ValidationError as error:
        # `members` of the old form is a list of objects, so that no record is of both forms.
        try:
            old = _decode_fat(value)
        except msgspec.ValidationError:
            raise error from None
    source = Source(old.source.topic, old.source.partition, old.source.offset)
    columns = zip(*((m.name, m.score, m.weight, m.contribution, m.status) for m in old.members), strict=True)
    contribution = Contribution(
        old.event_id, old.ensemble, old.version, old.arm, old.base, old.z, old.score,
        Members(*map(list, columns)), source, old.alternatives,
    )  # fmt: skip
    return contribution, LineageRow(
        old.event_id, old.ensemble, old.version, old.arm, old.link, source, old.source.place, old.features,
        old.feature_status, old.feature_hash, old.spec_hash, old.marks, old.code_version, old.partitions_age,
        old.labels_age, old.marks_ahead, old.control_offset, old.thresholds,
    )  # fmt: skip
