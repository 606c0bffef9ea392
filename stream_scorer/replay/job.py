"""A complete replay: input, stages, output files, quality and comparison."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.kafka.topics import Topics
from stream_scorer.quality import require_sklearn
from stream_scorer.records import Contribution, LineageRow, Score
from stream_scorer.replay.compare import Comparison, ServedRecord
from stream_scorer.replay.output import contributions_file, encode_complete, lineage_file, scores_file
from stream_scorer.replay.quality import evaluate
from stream_scorer.replay.report import ReplayReport
from stream_scorer.replay.run import OnProgress, Replay
from stream_scorer.replay.sources import ReplayInput
from stream_scorer.serde.canonical import canonical
from stream_scorer.spec.model import CheckedSpec


def replay(
    source: ReplayInput,
    checked: CheckedSpec,
    ensemble: Ensemble,
    topics: Topics,
    out: Path,
    clock: Clock,
    *,
    comparison: Comparison | None = None,
    on_progress: OnProgress | None = None,
) -> ReplayReport:
    """Replay `source` into ``scores``, ``contributions`` and ``lineage.parquet`` in `out`; existing files are replaced.

    Raises:
        SettingsError: a package of the extra `replay` is missing.
        UsageError: the input or the folder is invalid.
        BrokerUnavailable: the broker does not answer.
    """
    # Checked before the replay, because the metrics come last.
    require_sklearn("replay")
    digest = hashlib.sha256()
    decode_score, decode_contribution = msgspec.json.Decoder(Score).decode, msgspec.json.Decoder(Contribution).decode
    encode = msgspec.json.Encoder().encode
    started = clock.monotonic()
    with ExitStack() as stack:
        scores = stack.enter_context(scores_file(out))
        contributions = stack.enter_context(contributions_file(out))
        lineage = stack.enter_context(lineage_file(out))
        if comparison is not None:
            stack.callback(comparison.close)

        def emit(score: bytes, contribution: bytes, row: LineageRow) -> None:
            scores.add(score)
            lineage.add(encode(row))
            replayed = ServedRecord(decode_score(score), decode_contribution(contribution), row)
            contributions.add(encode_complete(replayed.contribution))
            for record in replayed:
                digest.update(canonical(record))
            if comparison is not None:
                comparison.check(replayed)

        run = Replay(checked, ensemble, topics, clock, start=source.start, emit=emit, labels=source.effective_labels)
        totals = run.run(source.pieces, on_progress)
    thresholds = ensemble.manifest.thresholds
    return ReplayReport(
        out=str(out),
        ensemble=ensemble.name,
        version=ensemble.version,
        transactions=totals.transactions,
        labels=totals.labels,
        labels_refused=source.effective_labels.refused.count,
        warmed=totals.warmed,
        scored=totals.scored,
        dead_letters=totals.dead_letters,
        duplicates=totals.duplicates,
        decisions=totals.decisions or {},
        scores_sha256=digest.hexdigest(),
        seconds=round(clock.monotonic() - started, 3),
        quality=evaluate(run.rows, ensemble.member_names, thresholds.review, thresholds.block),
        compared=comparison.compared if comparison is not None else None,
        different=comparison.different if comparison is not None else None,
        first_difference=comparison.first if comparison is not None else None,
        incomplete=comparison.incomplete if comparison is not None else None,
    )
