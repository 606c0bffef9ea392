"""A complete evaluation: `evaluate` takes a source, versions and options, and returns the result as plain records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from stream_scorer import __version__
from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import UsageError
from stream_scorer.evaluation.distributed import DistributedPass, Distribution, require_parquet
from stream_scorer.evaluation.figures import Accumulator
from stream_scorer.evaluation.options import Options
from stream_scorer.evaluation.result import Digests, Evaluation
from stream_scorer.evaluation.scoring import OnFeatures, Pass
from stream_scorer.evaluation.sources import Source
from stream_scorer.evaluation.store import Store, exclusive, fingerprint_of
from stream_scorer.quality import require_sklearn
from stream_scorer.spec.model import CheckedSpec, duration_ms

# Called with the name of a stage, how much of it is done, and its total.
OnProgress = Callable[[str, int, int], None]
CHANGES = "changes.parquet"


def evaluate(
    source: Source,
    checked: CheckedSpec,
    versions: Sequence[Ensemble],
    options: Options,
    out: Path,
    clock: Clock,
    *,
    on_progress: OnProgress | None = None,
    on_features: OnFeatures | None = None,
    where: Distribution | None = None,
) -> Evaluation:
    """Evaluate `versions` on `source`; the first one is the champion, with which the others are compared.

    Results per transaction go to ``piece-*.parquet`` in `out`, changed decisions to ``changes.parquet``. If `out` holds
    an unfinished evaluation of the same input, versions and labels, it continues after the last piece with saved
    feature rows; the digests are the same as without the interruption. `on_features` is called with the features of the
    batches that are not complete yet. With `where`, other processes compute features and scores, with the same results;
    `on_features` is not called then.

    Raises:
        UsageError: the input or the folder is invalid, another evaluation uses the folder, there is no version, or one
            occurs twice.
        ArtifactError: a version was trained on other features. SettingsError: an extra is missing.
        BrokerUnavailable: the broker does not answer.
    """
    _check(versions, checked, source, where)
    progress, facts = on_progress or _ignore, facts_of(checked, versions, options)
    facts |= {"input": source.about, "release": __version__}  # another release may compute other scores
    with exclusive(out):
        store = Store(out, fingerprint_of(facts), clock, with_rows=where is None)
        resumed, started = sum(piece.rows for piece in store.pieces), clock.monotonic()
        scoring = _pass(checked, versions, options, store, clock, where)
        counts = scoring.run(source, lambda done: progress("scoring", done, source.total), on_features)
        measured = clock.monotonic()
        figures = Accumulator(checked, versions, options, store, source.labels.as_of).run(
            out / CHANGES, lambda done, total: progress("computing figures", done, total)
        )
        ended = clock.monotonic()
    return Evaluation(
        spec=checked.spec.name,
        spec_sha256=checked.sha256,
        input=source.about,
        labels_as_of=source.labels.as_of,
        labels_known=source.labels.given,
        labels_later=source.labels.later,
        labels_refused=source.labels.refused.count,
        label_horizon_ms=duration_ms(checked.spec.labels.horizon),
        first_event_time=figures.first_event_time,
        last_event_time=figures.last_event_time,
        first_time=figures.first_time,
        transactions=figures.rows,
        labelled=figures.labelled,
        frauds=figures.frauds,
        fraud_cards=figures.fraud_cards,
        duplicates=counts.duplicates,
        warmed=counts.warmed,
        refused=counts.refused,
        resumed=resumed,
        review_cost=options.review_cost,
        replicates=options.replicates,
        piece_rows=options.piece_rows,
        digests=_digests(store),
        versions=figures.versions,
        members=figures.members,
        candidates=figures.candidates,
        seconds=scoring.timing.stages | {"figures": ended - measured, "total": ended - started},
        member_seconds=scoring.timing.members,
        out=str(out),
    )


def _digests(store: Store) -> Digests:
    features, scores, outcomes = (store.digest(part) for part in ("features", "scores", "outcomes"))
    return Digests(features, scores, outcomes, hashlib.sha256((features + scores + outcomes).encode()).hexdigest())


def _pass(
    checked: CheckedSpec, versions: Sequence[Ensemble], options: Options, store: Store, clock: Clock,
    where: Distribution | None,
) -> Pass | DistributedPass:  # fmt: skip
    """The pass over the input, in this process or on the workers of `where`."""
    segments, rows, piece_rows = options.segments_of(checked), options.rows, options.piece_rows
    if where is None:
        return Pass(checked, versions, segments, store, clock, rows=rows, piece_rows=piece_rows)
    return DistributedPass(checked, versions, segments, store, clock, where, rows=rows, piece_rows=piece_rows)


def facts_of(checked: CheckedSpec, versions: Sequence[Ensemble], options: Options) -> dict[str, object]:
    """What determines the results per transaction, besides the input."""
    return {
        "spec": checked.sha256,
        # Rows of features, and cards, are named by hashes of ids.
        "id_key": checked.pseudonyms.fingerprint,
        "versions": [(version.name, version.version, version.digest) for version in versions],
        "segments": options.segments_of(checked),
        "piece_rows": options.piece_rows,
    }


def _check(versions: Sequence[Ensemble], checked: CheckedSpec, source: Source, where: Distribution | None) -> None:
    require_sklearn("replay")
    if where is not None:
        require_parquet(source)
    if not versions:
        raise UsageError("there is no version to evaluate")
    names = [(version.name, version.version) for version in versions]
    for version, name in zip(versions, names, strict=True):
        version.check_features(checked.features, checked.feature_hash)
        if names.count(name) > 1:
            raise UsageError(f"ensemble {name[0]} {name[1]} occurs twice", hint="Give each version once.")


def _ignore(_stage: str, _done: int, _total: int) -> None:
    """No progress is shown."""
