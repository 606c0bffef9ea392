"""Every window of the monitor computed again from the topics, as columns, without the monitor's code.

`scores`, `contributions`, `lineage` and `labels` come from the log, bins and thresholds from the manifest as plain
JSON. Nothing is taken from summaries, outcomes or Redis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from proofs.kit import TopicContent, cards, read_lineage, read_topic
from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import DEFAULT, FRESH, MISSING, Contribution, MonitorMetric, Score
from stream_scorer.spec.model import PipelineSpec, duration_ms

# Of figures that are not whole numbers.
TOLERANCE = 1e-9
LABELLED = ("fpr", "precision", "false_discovery_rate", "recall", "false_positives_per_fraud")
# Figures that need the segment of a transaction, or the age of labels that were replaced (`fpr-oracle` checks them),
# and those of the detector of drift events (`drift-events`).
NOT_RECOMPUTED = ("segment_fpr", "label_maturity", "drift_state", "drift_evidence", "drift_chronic", "drift_event")
POSITIVE = {"review+block": ("review", "block"), "block": ("block",)}

Key = tuple[int, int, str, str]  # start, length (ms), metric, dimension


class _Label(msgspec.Struct):
    event_id: str
    label: str
    labelled_at: int
    source: str
    review_probability: float | None = None


@dataclass
class Logs:
    """What the topics hold, a row a scored record ``(n,)``, duplicates included.

    Attributes:
        series: columns by series of the reference profile.
        counted: by series, the rows that a histogram counts: those with a complete feature.
        verdict: 1 fraud, 0 genuine, -1 silent; a duplicate is always silent. reviewed: the label's probability, or NaN.
        late: labels that came more than two horizons after their transaction, and so count nowhere.
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
    reviewed: Floats
    late: int
    sources: list[tuple[int, int]]
    same_order: bool
    who: set[tuple[str, str, str]]
    subject: NDArray[Any]

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
        verdict, reviewed, late = verdicts(
            scores,
            read_topic(bootstrap, topics.labels),
            spec.labels.source_rank,
            2 * duration_ms(spec.labels.horizon),
            bad,
        )
        return cls(
            manifest,
            duration_ms(spec.monitor.pane),
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
            verdict,
            reviewed,
            late,
            [(c.source.partition, c.source.offset) for c in contributions],
            [s.event_id for s in scores] == [c.event_id for c in contributions] == [row.event_id for row in lineage]
            and all(c.members.name == names for c in contributions),
            {(s.ensemble, s.version, s.arm) for s in scores},
            np.array([f"{s.ensemble} {s.version} {s.arm}" for s in scores]),
        )

    def of(self, ensemble: str, version: str, arm: str, manifest: dict[str, Any]) -> Logs:
        """The rows that one version decided as `arm`; `manifest` is its own."""
        rows = np.flatnonzero(self.subject == f"{ensemble} {version} {arm}")
        columns = ("event_time", "decision", "value", "duplicate", "degraded", "fallback", "member_alerts", "verdict")
        return replace(
            self,
            manifest=manifest,
            event_id=[self.event_id[row] for row in rows.tolist()],
            series={name: values[rows] for name, values in self.series.items()},
            counted={name: rows_of[rows] for name, rows_of in self.counted.items()},
            reviewed=self.reviewed[rows],
            **{name: getattr(self, name)[rows] for name in columns},
        )


def verdicts(
    scores: Sequence[Score], topic: TopicContent, rank: Mapping[str, int], keep_ms: int, bad: bytes | None
) -> tuple[Ints, Floats, int]:
    """The label that holds of each row: the greatest by (source rank, labelled at, offset, partition)."""
    row_of = {s.event_id: row for row, s in reversed(list(enumerate(scores))) if not s.duplicate}
    holds: dict[int, tuple[tuple[float, int, int, int], _Label]] = {}
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
        order = (rank.get(label.source, -math.inf), label.labelled_at, offset, partition)
        if row not in holds or order > holds[row][0]:
            holds[row] = order, label
    verdict, reviewed = np.full(len(scores), -1), np.full(len(scores), np.nan)
    for row, (_, label) in holds.items():
        verdict[row] = label.label == "fraud"
        if label.review_probability is not None:
            reviewed[row] = label.review_probability
    return verdict, reviewed, late


def recompute(logs: Logs, length: int) -> dict[Key, tuple[float | None, int | None, int | None]]:
    """Value, numerator and denominator of every figure of every window of `length` milliseconds.

    A value of None stands where the monitor gives bounds.
    """
    starts, window = np.unique(logs.event_time // length * length, return_inverse=True)
    found: dict[Key, tuple[float | None, int | None, int | None]] = {}

    def count(rows: Bools, weight: Ints | None = None) -> list[int]:
        out = np.zeros(len(starts), dtype=np.int64)
        np.add.at(out, window[rows], 1 if weight is None else weight[rows])
        return out.tolist()

    def put(metric: str, dimension: str, up: Sequence[int], down: Sequence[int], *, rate: bool = True) -> None:
        for start, a, b in zip(starts.tolist(), up, down, strict=True):
            found[start, length, metric, dimension] = (a / b if rate and b else None), a, b

    labelled = set(starts[np.unique(window[logs.verdict >= 0])].tolist())
    members = logs.manifest["members"]
    everything = np.ones(len(window), dtype=np.bool_)
    rows, money = count(everything), count(everything, logs.value)
    for start, number in zip(starts.tolist(), rows, strict=True):
        found[start, length, "transactions", ""] = number, number, None
    for metric, flags in (("duplicate", logs.duplicate), ("degraded", logs.degraded), ("fallback", logs.fallback)):
        put(f"{metric}_share", "", count(flags), rows)
    for m, member in enumerate(members):
        put("member_alert_rate", member["name"], count(logs.alone(m)), rows)
    for name, decisions in POSITIVE.items():
        positive = np.isin(logs.decision, decisions)
        put("alert_rate", name, count(positive), rows)
        put("alert_rate_money", name, count(positive, logs.value), money)
        tp, fp = count(positive & (logs.verdict == 1)), count(positive & (logs.verdict == 0))
        fraud, alerts = count(logs.verdict == 1), count(positive)
        put("fpr", name, fp, [n - f for n, f in zip(rows, fraud, strict=True)], rate=False)
        put("precision", name, tp, alerts, rate=False)
        put("false_discovery_rate", name, fp, alerts, rate=False)
        put("recall", name, tp, fraud, rate=False)
        put("false_positives_per_fraud", name, fp, tp, rate=False)
        wrong, caught = count(positive & (logs.verdict == 0), logs.value), count(logs.verdict == 1, logs.value)
        put("fpr_money", name, wrong, [m - f for m, f in zip(money, caught, strict=True)], rate=False)
    for m, member in enumerate(members):
        alone = count(logs.alone(m) & (logs.verdict == 0))
        put("member_fpr", member["name"], alone, [n - f for n, f in zip(rows, fraud, strict=True)], rate=False)
    _without_labels(found, length, set(starts.tolist()) - labelled)
    for name, values in logs.series.items():
        of = logs.counted[name]
        for start, n, distance in zip(starts.tolist(), count(of), _distances(logs, name, values, window), strict=True):
            if n:
                found[start, length, "drift_score", name] = distance, None, n
    return found


SubjectKey = tuple[str, str, str, Key]


def recompute_all(
    logs: Logs, manifests: Mapping[str, dict[str, Any]], windows: Sequence[int], profiled: str
) -> dict[SubjectKey, Any]:
    """Every figure by ensemble, version, arm and key, as `recompute` returns it.

    Args:
        manifests: by digest. windows: lengths in panes. profiled: the version whose manifest the monitor has; the
            others have no drift scores and no rates by member.
    """
    out: dict[SubjectKey, Any] = {}
    for ensemble, version, arm in logs.who:
        digest = version.removeprefix("local-")
        mine = logs.of(ensemble, version, arm, next(m for name, m in manifests.items() if name.startswith(digest)))
        for panes in windows:
            for key, row in recompute(mine, panes * logs.pane_ms).items():
                if key[2] not in ("drift_score", "member_fpr") or version == profiled:
                    out[ensemble, version, arm, key] = row
    return out


def wrong_figures(expected: Mapping[SubjectKey, Any], records: Sequence[MonitorMetric]) -> dict[str, list[str]]:
    """Figures that differ from `expected`, by metric. Of `records`, in log order, the last of each key counts."""
    last: dict[SubjectKey, MonitorMetric] = {}
    for metric in records:
        if metric.metric in NOT_RECOMPUTED:
            continue
        key = (metric.window_start, metric.window_end - metric.window_start, metric.metric, metric.dimension)
        last[metric.ensemble, metric.version, metric.arm, key] = metric
    wrong: dict[str, list[str]] = {}
    for subject in expected.keys() | last.keys():
        said, row = last.get(subject), expected.get(subject)
        same = False
        if said is not None and row is not None:
            same = (said.numerator, said.denominator) == row[1:]
            if row[0] is not None:
                same = same and said.value is not None and abs(said.value - row[0]) <= TOLERANCE
        if not same:
            shown = None if said is None else (said.value, said.numerator, said.denominator, said.revision)
            wrong.setdefault(subject[3][2], []).append(f"{subject}: {shown}, by the log {row}")
    return wrong


def _without_labels(
    found: dict[Key, tuple[float | None, int | None, int | None]], length: int, windows: set[int]
) -> None:
    """Windows without any label have no figures of labels, and none by money or member at all."""
    for key in list(found):
        if key[0] in windows and key[1] == length and key[2] in LABELLED:
            found[key] = None, None, None
        elif key[0] in windows and key[1] == length and key[2] in ("fpr_money", "member_fpr"):
            del found[key]


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
