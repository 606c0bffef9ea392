"""Lineage: what a micro-batch's scores were computed from, as one record for each source partition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stream_scorer import __version__
from stream_scorer.pipeline.batch import BatchDecisions, MicroBatch
from stream_scorer.records import ARMS, ShardOffset
from stream_scorer.serde.lineage import (
    EncodedLineage,
    LineageColumns,
    LineageHeader,
    LineageVersion,
    applied_by_topic,
    encode_lineage,
)
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import AppliedOffsets


def lineage_of(batch: MicroBatch, checked: CheckedSpec) -> Iterator[EncodedLineage]:
    """The lineage records of a scored micro-batch; none if no transaction of it was scored."""
    events, enriched, decided = batch.events, batch.enriched, batch.decided
    assert events is not None and enriched is not None and decided is not None
    transactions, raw, rules = events.transactions, batch.transactions, decided.rules
    own = np.full(len(transactions), np.nan)
    header = LineageHeader(
        topic=raw.topic,
        feature_hash=checked.feature_hash,
        spec_hash=checked.sha256,
        code_version=__version__,
        versions=_versions(decided),
        control_offset=decided.lineup.control_offset,
        applied_offsets=applied_by_topic(enriched.applied.next_offset),
        applied_offsets_ahead=_ahead(enriched.applied),
        features=checked.features,
    )
    columns = LineageColumns(
        partition=raw.partition[transactions.row],
        offset=raw.offset[transactions.row],
        event_id=transactions.event_id,
        version=decided.arm,
        features=enriched.matrix,
        status=enriched.status,
        partitions_age=enriched.ages.partitions,
        labels_age=enriched.ages.labels,
        review=own if rules is None else rules.review,
        block=own if rules is None else rules.block,
    )
    return encode_lineage(header, columns)


def _versions(decided: BatchDecisions) -> list[LineageVersion]:
    """The versions that decide, in the order of `ARMS`."""
    out = []
    for arm, ensemble in zip(ARMS, decided.lineup.versions[: decided.lineup.deciding], strict=False):
        own = ensemble.manifest.thresholds
        out.append(
            LineageVersion(
                ensemble.name, ensemble.version, arm, ensemble.manifest.link, ensemble.digest, own.policy_version,
                own.review, own.block,
            )
        )  # fmt: skip
    return out


def _ahead(applied: AppliedOffsets) -> list[ShardOffset]:
    """Where a shard saw more than all of them did."""
    return [
        ShardOffset(shard, source.topic, source.partition, offset)
        for shard, mine in enumerate(applied.by_shard)
        for source, offset in sorted(mine.next_offset.items())
        if offset > applied.next_offset[source]
    ]
