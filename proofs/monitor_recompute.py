"""Every window of the monitor computed again from the topics, as columns, without the monitor's code.

`scores`, `contributions`, `lineage` and `labels` come from the log, bins and thresholds from the manifest as plain
JSON. Nothing is taken from summaries, outcomes or Redis. `monitor_labels` has the figures of labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from proofs.kit import TopicContent, cards, log_ends, read_lineage, read_topic
from proofs.monitor_labels import (
    LABELLED,
    POSITIVE,
    Recomputed,
    Rows,
    labelled_figures,
    maturity_figures,
)
from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import DEFAULT, FRESH, MISSING, Contribution, MonitorMetric, Score
from stream_scorer.spec.model import PipelineSpec, duration_ms

# Of figures that are not whole numbers.
TOLERANCE = 1e-9
# Figures of the detector of drift events (`drift-events` checks them).
NOT_RECOMPUTED = ("drift_state", "drift_evidence", "drift_chronic", "drift_event")
LABEL_METRICS = (*LABELLED, "fpr_money", "segment_fpr", "member_fpr", "label_maturity")

Key = tuple[int, int, str, str]  # start, length (ms), metric, dimension


class _Label(msgspec.Struct):
    event_id: str
    label: str
    labelled_at: int
    source: str
    review_probability: float | None = None


class Labels(NamedTuple):
    """The labels of each row ``(n,)``, see `verdicts`; `late`: how many came after two horizons and do not count.

    Attributes:
        reviewed: the probability that the label states, or NaN. source: that of the label, or "".
        youngest, oldest: the least and greatest age of any label of the row, ms; -1 without one.
        newest: bounds of the newest time at which a counted label was given, ms.
    """

    verdict: Ints
    reviewed: Floats
    source: NDArray[Any]
    youngest: Ints
    oldest: Ints
    late: int
    newest: tuple[int, int]


class Progress(NamedTuple):
    """How far event time has come in the monitor, at least and at most, ms.

    Attributes:
        closed: the watermark of the windows. newest: the newest pane or label.
    """

    lateness_ms: int
    closed: tuple[int, int]
    newest: tuple[int, int]


@dataclass
class Logs:
    """The content of the topics, one row per scored record ``(n,)``, duplicates included.

    Attributes:
        series: columns by series of the reference profile.
        counted: by series, the rows that a histogram counts: those with a complete feature.
        verdict: 1 fraud, 0 genuine, -1 silent; a duplicate is always silent.
        propensity: probability of the draw for review that the score states, or NaN. group: of the card, or -1.
        rule: the segment or list that applied, or "". source_rank: the sources of labels that the spec lists.
    """

    manifest: dict[str, Any]
    pane_ms: int
    horizon_ms: int
    event_id: list[str]
    event_time: Ints
    decision: NDArray[Any]
    value: Ints
    duplicate: Bools
    degraded: Bools
    fallback: Bools
    member_alerts: Ints
    series: dict[str, Floats]
    counted: dict[str, Bools]
    verdict: Ints
    labels: Labels
    propensity: Floats
    group: Ints
    rule: NDArray[Any]
    source_rank: frozenset[str]
    progress: Progress
    sources: list[tuple[int, int]]
    same_order: bool
    who: set[tuple[str, str, str]]
    subject: NDArray[Any]

    @property
    def late(self) -> int:
        """Labels that came more than two horizons after their transaction, and so do not count."""
        return self.labels.late

    def rows(self, *, members: bool) -> Rows:
        """The rows that the figures of labels need."""
        names = [member["name"] for member in self.manifest["members"]] if members else []
        listed = np.isin(self.labels.source, sorted(self.source_rank))
        return Rows(
            self.decision, self.value, self.duplicate, self.verdict, self.labels.reviewed, self.propensity, self.group,
            self.rule, np.where(listed, self.labels.source, "other"),
            {name: self.alone(m) for m, name in enumerate(names)},
        )  # fmt: skip

    def alone(self, member: int) -> Bools:
        """Which rows this member alone would have alerted."""
        scores = self.series[f"member:{self.manifest['members'][member]['name']}"]
        return np.asarray(scores >= self.manifest["thresholds"]["review"])

    @classmethod
    def read(
        cls,
        bootstrap: str,
        topics: Topics,
        manifest: dict[str, Any],
        spec: PipelineSpec | None = None,
        bad: bytes | None = None,
    ) -> Logs:
        """Read the topics. `spec` is that of the cards by default; labels whose key begins with `bad` are left out."""
        spec = spec or cards().spec
        scores = read_topic(bootstrap, topics.scores).decode(Score)
        contributions = read_topic(bootstrap, topics.contributions).decode(Contribution)
        lineage = read_lineage(bootstrap, topics)
        names = [member["name"] for member in manifest["members"]]
        features = np.array([r.features for r in lineage], dtype=np.float64)
        series = dict(zip(manifest["features"], features.T, strict=True))
        status = np.array([r.feature_status for r in lineage])
        counted = dict(zip(manifest["features"], np.isin(status, (FRESH, DEFAULT)).T, strict=True))
        with_features = ~(status == MISSING).any(axis=1)
        for m, name in enumerate(names):
            series[f"member:{name}"] = np.array([c.members.score[m] for c in contributions], dtype=np.float64)
            counted[f"member:{name}"] = with_features
        counted["score"] = with_features
        series["score"] = np.array([c.score for c in contributions], dtype=np.float64)
        labels = verdicts(
            scores,
            read_topic(bootstrap, topics.labels),
            spec.labels.source_rank,
            2 * duration_ms(spec.labels.horizon),
            bad,
        )
        pane_ms = duration_ms(spec.monitor.pane)
        places = [
            (c.source.partition, s.event_time // pane_ms * pane_ms) for c, s in zip(contributions, scores, strict=False)
        ]
        return cls(
            manifest,
            pane_ms,
            duration_ms(spec.labels.horizon),
            [s.event_id for s in scores],
            np.array([s.event_time for s in scores]),
            np.array([s.decision for s in scores]),
            np.array([s.value for s in scores]),
            np.array([s.duplicate for s in scores]),
            np.array([bool(s.degraded) or s.coverage < 1 - 1e-9 or s.score is None for s in scores]),
            np.array([s.score is None for s in scores]),
            np.array([s.member_alerts for s in scores]),
            series,
            counted,
            labels.verdict,
            labels,
            np.array([np.nan if s.review_propensity is msgspec.UNSET else s.review_propensity for s in scores]),
            np.array([-1 if s.card_group is None else s.card_group for s in scores]),
            np.array([s.rule or "" for s in scores], dtype=object),
            frozenset(spec.labels.source_rank),
            _progress(places, len(log_ends(bootstrap, [topics.scores])), labels, spec),
            [(c.source.partition, c.source.offset) for c in contributions],
            [s.event_id for s in scores] == [c.event_id for c in contributions] == [row.event_id for row in lineage]
            and all(c.members.name == names for c in contributions),
            {(s.ensemble, s.version, s.arm) for s in scores},
            np.array([f"{s.ensemble} {s.version} {s.arm}" for s in scores]),
        )

    def of(self, ensemble: str, version: str, arm: str, manifest: dict[str, Any]) -> Logs:
        """The rows that one version decided as `arm`; `manifest` is its own."""
        rows = np.flatnonzero(self.subject == f"{ensemble} {version} {arm}")
        columns = ("event_time", "decision", "value", "duplicate", "degraded", "fallback", "member_alerts")
        columns += ("verdict", "propensity", "group", "rule")
        of_labels = ("verdict", "reviewed", "source", "youngest", "oldest")
        return replace(
            self,
            manifest=manifest,
            event_id=[self.event_id[row] for row in rows.tolist()],
            series={name: values[rows] for name, values in self.series.items()},
            counted={name: rows_of[rows] for name, rows_of in self.counted.items()},
            labels=self.labels._replace(**{name: getattr(self.labels, name)[rows] for name in of_labels}),
            **{name: getattr(self, name)[rows] for name in columns},
        )


def verdicts(
    scores: Sequence[Score], topic: TopicContent, rank: Mapping[str, int], keep_ms: int, bad: bytes | None
) -> Labels:
    """The label that holds of each row: the greatest by (source rank, labelled at, offset, partition)."""
    row_of = {s.event_id: row for row, s in reversed(list(enumerate(scores))) if not s.duplicate}
    holds: dict[int, tuple[tuple[float, int, int, int], _Label]] = {}
    given: dict[int, list[int]] = {}
    late = 0
    decode = msgspec.json.Decoder(_Label).decode
    for key, value, offset, partition in zip(topic.key, topic.value, topic.offset, topic.partition, strict=True):
        if bad is not None and (key or b"").startswith(bad):
            continue
        label = decode(value or b"")
        if bad is not None and label.event_id not in row_of:
            continue  # its transaction never came
        row = row_of[label.event_id]
        if label.labelled_at - scores[row].event_time > keep_ms:
            late += 1
            continue
        given.setdefault(row, []).append(label.labelled_at)
        order = (rank.get(label.source, -math.inf), label.labelled_at, offset, partition)
        if row not in holds or order > holds[row][0]:
            holds[row] = order, label
    verdict, reviewed = np.full(len(scores), -1), np.full(len(scores), np.nan)
    source = np.full(len(scores), "", dtype=object)
    youngest, oldest = np.full(len(scores), -1), np.full(len(scores), -1)
    for row, (_, label) in holds.items():
        verdict[row], source[row] = label.label == "fraud", label.source
        if label.review_probability is not None:
            reviewed[row] = label.review_probability
        youngest[row], oldest[row] = (
            max(at - scores[row].event_time, 0) for at in (min(given[row]), max(given[row]))
        )  # fmt: skip
    # If a transaction has several labels, some may not count.
    newest = (
        max((at[0] for at in given.values() if len(at) == 1), default=0),
        max((max(at) for at in given.values()), default=0),
    )
    return Labels(verdict, reviewed, source, youngest, oldest, late, newest)


def _progress(places: Sequence[tuple[int, int]], partitions: int, labels: Labels, spec: PipelineSpec) -> Progress:
    """The progress by partition and pane of each score; windows do not wait for idle partitions."""
    by_partition: dict[int, int] = {}
    for partition, pane in places:
        by_partition[partition] = max(pane, by_partition.get(partition, pane))
    newest = max(by_partition.values(), default=0)
    slowest = min(by_partition.values(), default=0) if len(by_partition) == partitions else 0
    return Progress(
        duration_ms(spec.time.allowed_lateness),
        (slowest, newest),
        (max(newest, labels.newest[0]), max(newest, labels.newest[1])),
    )


def recompute(logs: Logs, length: int, *, members: bool = True) -> dict[Key, Recomputed]:
    """Every figure of every window of `length` milliseconds. Without `members` there are no rates by member."""
    starts, window = np.unique(logs.event_time // length * length, return_inverse=True)
    found: dict[Key, Recomputed] = {}

    def count(rows: Bools, weight: Ints | None = None) -> list[int]:
        out = np.zeros(len(starts), dtype=np.int64)
        np.add.at(out, window[rows], 1 if weight is None else weight[rows])
        return out.tolist()

    def put(metric: str, dimension: str, up: Sequence[int], down: Sequence[int]) -> None:
        for start, a, b in zip(starts.tolist(), up, down, strict=True):
            found[start, length, metric, dimension] = Recomputed(a / b if b > 0 else None, a, b)

    everything = np.ones(len(window), dtype=np.bool_)
    rows, money = count(everything), count(everything, logs.value)
    for start, number in zip(starts.tolist(), rows, strict=True):
        found[start, length, "transactions", ""] = Recomputed(number, number, None)
    for metric, flags in (("duplicate", logs.duplicate), ("degraded", logs.degraded), ("fallback", logs.fallback)):
        put(f"{metric}_share", "", count(flags), rows)
    for m, member in enumerate(logs.manifest["members"]):
        put("member_alert_rate", member["name"], count(logs.alone(m)), rows)
    for name, decisions in POSITIVE.items():
        positive = np.isin(logs.decision, decisions)
        put("alert_rate", name, count(positive), rows)
        put("alert_rate_money", name, count(positive, logs.value), money)
    for name, values in logs.series.items():
        of = logs.counted[name]
        for start, n, distance in zip(starts.tolist(), count(of), _distances(logs, name, values, window), strict=True):
            if n:
                found[start, length, "drift_score", name] = Recomputed(distance, None, n)
    of_labels = logs.rows(members=members)
    for number, start in enumerate(starts.tolist()):
        inside = np.flatnonzero(window == number)
        for (metric, dimension), figure in _labelled(logs, of_labels, inside, length).items():
            found[start, length, metric, dimension] = figure
    return {key: _timed(figure, logs.progress, logs.horizon_ms, key) for key, figure in found.items()}


def _labelled(logs: Logs, of_labels: Rows, inside: Ints, length: int) -> dict[tuple[str, str], Recomputed]:
    """The figures of labels of one window."""
    rows = of_labels.take(inside)
    labelled = rows.verdict >= 0
    figures = labelled_figures(rows)
    if length == logs.pane_ms:
        chosen = inside[labelled]
        figures |= maturity_figures(logs.labels.youngest[chosen], logs.labels.oldest[chosen], logs.horizon_ms)
    names, numbers = np.unique(rows.source[labelled].astype(str), return_counts=True)
    sources = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    return {key: figure._replace(sources=sources) for key, figure in figures.items()}


def _timed(figure: Recomputed, progress: Progress, horizon_ms: int, key: Key) -> Recomputed:
    """Whether the window is closed, and its labels final; None where the logs cannot show that."""

    def reached(bounds: tuple[int, int], at: int) -> bool | None:
        return None if bounds[0] < at <= bounds[1] else bounds[0] >= at

    end = key[0] + key[1]
    closed = reached(progress.closed, end + progress.lateness_ms)
    final = reached(progress.newest, end + horizon_ms) if figure.labelled else None
    return figure._replace(closed=closed, final=final, newest=progress.newest[1])


def differs(published: MonitorMetric | None, wanted: Recomputed | None, horizon_ms: int) -> bool:
    """Whether what the monitor published last is not `wanted`."""
    optional = wanted is not None and wanted.between is not None and (wanted.final is None or wanted.between[2] == 0)
    if wanted is not None and wanted.between is not None and wanted.final is False:
        wanted = None  # only mature windows have a curve
    if published is None or wanted is None:
        return (published is not None or wanted is not None) and not (published is None and optional)
    return not (
        _same_numbers(published, wanted) and _same_window(published, wanted, horizon_ms)
        and all(name in published.statistics and _close(published.statistics[name], value)
                for name, value in wanted.statistics.items())
    )  # fmt: skip


def _same_numbers(published: MonitorMetric, wanted: Recomputed) -> bool:
    if wanted.between is not None:
        low, high, least, most = wanted.between
        a, b = published.numerator, published.denominator
        return (
            a is not None and b is not None and b > 0 and low <= a <= high and least <= b <= most
            and _close(published.value, a / b)
        )  # fmt: skip
    intervals = (published.interval_low, published.interval_high), wanted.interval or (None, None)
    return (
        (published.numerator, published.denominator) == (wanted.numerator, wanted.denominator)
        and _close(published.value, wanted.value)
        and _close(published.low, wanted.low) and _close(published.high, wanted.high)
        and all(_close(one, other) for one, other in zip(*intervals, strict=True))
    )  # fmt: skip


def _same_window(published: MonitorMetric, wanted: Recomputed, horizon_ms: int) -> bool:
    """The window of a record: closed, and for figures of labels final, their age and their sources."""
    if wanted.closed is not None and published.closed != wanted.closed:
        return False
    if not wanted.labelled:
        return (
            published.label_age is None
            and published.final is None
            and published.maturity is None
            and not published.label_sources
        )
    age = published.label_age
    return (
        age is not None and 0 <= age <= max(wanted.newest - published.window_end, 0)
        and published.final == (age >= horizon_ms) and wanted.final in (None, published.final)
        and (
            published.maturity == 1.0 if published.final
            else published.maturity is None or 0 <= published.maturity <= 1
        )
        and published.label_sources == wanted.sources
    )  # fmt: skip


def _close(one: float | None, other: float | None) -> bool:
    return (one is None) == (other is None) and (one is None or other is None or abs(one - other) <= TOLERANCE)


SubjectKey = tuple[str, str, str, Key]


def recompute_all(
    logs: Logs, manifests: Mapping[str, dict[str, Any]], windows: Sequence[int], profiled: str
) -> dict[SubjectKey, Recomputed]:
    """Every figure by ensemble, version, arm and key, as `recompute` returns it.

    Args:
        manifests: by digest. windows: lengths in panes. profiled: the version whose manifest the monitor has; the
            others have no drift scores and no rates by member.
    """
    out: dict[SubjectKey, Recomputed] = {}
    for ensemble, version, arm in logs.who:
        digest = version.removeprefix("local-")
        mine = logs.of(ensemble, version, arm, next(m for name, m in manifests.items() if name.startswith(digest)))
        for panes in windows:
            for key, row in recompute(mine, panes * logs.pane_ms, members=version == profiled).items():
                if key[2] != "drift_score" or version == profiled:
                    out[ensemble, version, arm, key] = row
    return out


def wrong_figures(
    expected: Mapping[SubjectKey, Recomputed], records: Sequence[MonitorMetric], horizon_ms: int
) -> dict[str, list[str]]:
    """Figures that differ from `expected`, by metric. Of `records`, in log order, the last of each key counts."""
    last: dict[SubjectKey, MonitorMetric] = {}
    for metric in records:
        if metric.metric in NOT_RECOMPUTED:
            continue
        key = (metric.window_start, metric.window_end - metric.window_start, metric.metric, metric.dimension)
        last[metric.ensemble, metric.version, metric.arm, key] = metric
    wrong: dict[str, list[str]] = {}
    for subject in expected.keys() | last.keys():
        record, row = last.get(subject), expected.get(subject)
        if differs(record, row, horizon_ms):
            wrong.setdefault(subject[3][2], []).append(f"{subject}: {record}, by the log {row}")
    return wrong


def _distances(logs: Logs, name: str, values: Floats, window: Ints) -> list[float]:
    """Jensen-Shannon distance (nats) of each window's histogram from the manifest's, half a count added to each bin."""
    reference = logs.manifest["reference_profile"][name]
    edges, counts = np.array(reference["edges"], dtype=np.float64), np.array(reference["counts"], dtype=np.float64)
    place = np.where(np.isnan(values), len(edges) + 1, (values[:, None] >= edges).sum(axis=1))
    histogram = np.full((int(window.max()) + 1, len(counts)), 0.5)
    of = logs.counted[name]
    np.add.at(histogram, (window[of], place[of]), 1.0)
    p = histogram / histogram.sum(axis=1, keepdims=True)
    q = (counts + 0.5) / (counts + 0.5).sum()
    m = (p + q) / 2
    divergence = (p * np.log(p / m) + q * np.log(q / m)).sum(axis=1) / 2
    return [float(x) for x in np.sqrt(np.maximum(divergence, 0.0))]
