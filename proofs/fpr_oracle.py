"""fpr-oracle: false-positive rates equal a recomputation, and their bounds and intervals contain the hidden truth.

`N` simulated transactions are scored by a model that knows only noisy scores; in the second half the scores of genuine
transactions are too high, as after a change upstream. The product decides and draws the review sample
(`pipeline.policy`, `pipeline.sampling`). The loop is closed: analysts label a random part of the alerts, within their
capacity, and the sample; chargebacks come late, and only for fraud that was approved or cleared; a fifth of the fraud
is never reported; reviewers err. The label joiner (its real store), the tally and the figures are the product's, in
memory.

Checked for every window whose labels are mature:

- counts, face values, point estimate and interval equal a recomputation from the score and label records, which shares
  no code with them, and so does every other figure of labels (`monitor_labels`); the sample equals one drawn with plain
  integers;
- the bounds contain the hidden rate in at least 95 of 100 windows, those of each member alone too, and the intervals of
  the point estimate in at least 90;
- the error of the point estimate is below that of two naive rates (false positives among the labelled genuine ones, and
  unlabelled alerts taken for fraud) and below that of CBPE, the expected rate by calibrated scores (NannyML). CBPE is
  calibrated on the history, with the labels of the history.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from scipy import special, stats
from sklearn.isotonic import IsotonicRegression

from proofs import monitor_labels
from proofs.kit import Context, Result, cards
from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.manifest import Thresholds
from stream_scorer.kafka.transactional_loop import InputRecord
from stream_scorer.monitor import tally
from stream_scorer.monitor.joiner import Joiner, JoinRules
from stream_scorer.monitor.joiner_store import JoinerStore
from stream_scorer.monitor.rate_figures import Figure
from stream_scorer.monitor.tally import cell_label, count_outcome, count_summary, new_cells
from stream_scorer.monitor.windows import WindowRules, figures
from stream_scorer.pipeline.policy import Policy
from stream_scorer.pipeline.sampling import Sampling, rate_counts
from stream_scorer.records import DECISIONS, PaneSummary, Score, ScoreSummary
from stream_scorer.serde.decoder import Transactions as Decoded
from stream_scorer.serde.decoder import hash_ids
from stream_scorer.simulate.config import DAY_MS, HOUR_MS, SimulationConfig
from stream_scorer.simulate.encode import encode_labels
from stream_scorer.simulate.generate import generate
from stream_scorer.simulate.labeller import Labeller, LabellerConfig, history_labels
from stream_scorer.simulate.transactions import Transactions
from stream_scorer.spec.model import CheckedSpec, MonitorRules, duration_ms

N = 1_000_000
# Fewer transactions are the scaled-down form: windows of a day instead of four hours.
FULL = 600_000
DAYS, HISTORY_DAYS = 33, 6
# Shares of the history that are alerted and blocked, and share of the alerts that analysts can label.
ALERTED, BLOCKED, CAPACITY = 0.02, 0.004, 0.4
DUPLICATES = 0.002
# Scores: standard deviation of a card's own level, distance of fraud, and the change upstream in the second half.
CARD_SD, FRAUD_DISTANCE, CHANGE = 0.6, 2.6, 0.25
MEMBERS = ("one", "two")
POSITIVE = {"review+block": (1, 2), "block": (2,)}
# Median width of the intervals, relative to the rate: with about 30 reviewed false positives per window, on few cards.
WIDEST = 1.2
TOLERANCE = 1e-9
WHO = cell_label("cards", "1", "champion")


def run(context: Context) -> Result:
    """See the module."""
    n, result = context.n or N, Result()
    few = n < FULL
    checked = _spec("1d" if few else "4h")
    genuine_probability = tally.review_probability
    if context.broken:
        # Reviewed alerts count as themselves only, as if analysts had labelled every alert.
        tally.review_probability = lambda *_: 1.0
    try:
        log = simulate(context, checked, n)
    finally:
        tally.review_probability = genuine_probability
    mature = [pane for pane in log.panes if log.end_ms - pane - log.pane_ms >= log.horizon_ms and pane >= log.begin_ms]
    context.say(f"{len(log.columns.event_time):,} scores, {len(log.labels):,} labels, {len(mature)} mature windows")
    result.figures |= {"transactions": n, "labels": len(log.labels), "drawn_for_review": int(log.columns.drawn.sum())}
    result.at_least("mature_windows", len(mature), 15 if few else 100)
    rows = Rows.of(log)
    result.check("the review sample is the one that plain integers give", _same_sample(log, checked))
    result.at_least("drawn_and_labelled", int((rows.columns.drawn & (rows.verdict >= 0)).sum()), 30 if few else 500)
    found = {pane: figures(log.cells[pane, WHO], None, log.rules, MEMBERS) for pane in mature}
    _check_recomputation(result, rows, found)
    _check_every_figure(result, log, rows, found)
    _check_coverage(result, rows, found, few=few)
    _check_errors(result, rows, found)
    return result


def _spec(pane: str) -> CheckedSpec:
    spec = msgspec.structs.replace(cards().spec, monitor=MonitorRules(pane=pane))
    return CheckedSpec(spec, "", "a key of this proof, which is not a secret")


@dataclass
class Columns:
    """What was scored ``(n,)``, duplicates included. `drawn`: in the review sample. `fraud`: the hidden truth."""

    event_id: list[str]
    event_time: Ints
    decision: Ints
    duplicate: Bools
    drawn: Bools
    group: Ints
    members: Ints
    calibrated: Floats
    fraud: Bools
    amount: Ints
    online: Bools


@dataclass
class Log:
    """The records and the product's counts of them."""

    pane_ms: int
    horizon_ms: int
    rules: WindowRules
    join_rules: JoinRules
    review_sample: float
    begin_ms: int = 0
    end_ms: int = 0
    columns: Columns = field(init=False)
    labels: list[dict[str, Any]] = field(default_factory=list)
    cells: tally.Cells = field(default_factory=new_cells)

    @property
    def panes(self) -> list[int]:
        return sorted({pane for pane, _ in self.cells})


class Model:
    """Noisy scores: a card has a level of its own, so false positives come in clusters."""

    def __init__(self, seed: int, customers: int) -> None:
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(9,)))
        self._level = self._rng.normal(0.0, CARD_SD, 2 * customers + 10)

    def margin(self, transactions: Transactions, change: float) -> Floats:
        """``(n,)``: log-odds of fraud, in units of its own; `change` is added to those of genuine transactions."""
        n = len(transactions)
        fraud = transactions.fraud_kind > 0
        card = hash_ids(transactions.customer_id.tolist()) % len(self._level)
        x = self._rng.normal(size=n) + self._level[card]
        return np.asarray(x + np.where(fraud, FRAUD_DISTANCE, change))


def simulate(context: Context, checked: CheckedSpec, n: int) -> Log:
    """Score everything after the history, close the loop, and count."""
    config = SimulationConfig(seed=context.seed, customers=max(round(n / DAYS / 1.5), 50), days=None, transactions=n)
    everything = generate(config)
    begin = config.start_ms + HISTORY_DAYS * DAY_MS
    split = int(np.searchsorted(everything.event_time, begin))
    history, live = everything.slice(0, split), everything.slice(split, n)
    model = Model(context.seed, config.customers)
    margin = model.margin(history, 0.0)
    calibration = _calibration(history, margin, begin)
    thresholds = Thresholds(
        review=float(special.expit(np.quantile(margin, 1 - ALERTED))),
        block=float(special.expit(np.quantile(margin, 1 - BLOCKED))),
        policy_version="oracle",
    )
    hourly = ALERTED * n / DAYS / 24
    labeller = Labeller(LabellerConfig(seed=context.seed, capacity_per_hour=max(round(CAPACITY * hourly), 2)))
    log = _new_log(checked, begin, int(live.event_time[-1]))
    half = begin + (log.end_ms - begin) // 2
    parts: list[Columns] = []
    scorer = Scorer(checked, thresholds, model, calibration)
    with closing(JoinerStore(":memory:")) as store:
        joiner = Joiner(store, log.join_rules, SystemClock(), scores="scores", labels="labels")
        offset = 0
        for start, stop in _hours(live.event_time, log.pane_ms):
            chunk = live.slice(start, stop)
            change = CHANGE if int(chunk.event_time[0]) >= half else 0.0
            part, scores, summary = scorer.score(chunk, change, log.pane_ms)
            parts.append(part)
            labeller.observe(chunk, own_sample=False)
            first = ~part.duplicate
            ids = np.array(part.event_id, dtype=object)
            alerted = first & (part.decision > 0)
            labeller.alerted(ids[alerted].tolist(), [DECISIONS[d] for d in part.decision[alerted].tolist()])
            labeller.sampled(ids[part.drawn].tolist(), [scorer.share] * int(part.drawn.sum()))
            labels = labeller.advance(int(chunk.event_time[-1]))
            records = [InputRecord("scores", 0, 0, value, 0) for value in scores]
            for value, at in zip(encode_labels(labels), labels.labelled_at.tolist(), strict=True):
                records.append(InputRecord("labels", 0, offset, value, at))
                log.labels.append(msgspec.json.decode(value) | {"offset": offset})
                offset += 1
            for outcome in joiner.join(records):
                count_outcome(
                    log.cells, outcome, log.rules.label_sources, pane_ms=log.rules.pane_ms, horizon_ms=log.horizon_ms
                )
            count_summary(log.cells, summary)
    log.columns = Columns(
        [i for part in parts for i in part.event_id],
        *(np.concatenate([getattr(part, name) for part in parts]) for name in list(Columns.__annotations__)[1:]),
    )
    return log


def _new_log(checked: CheckedSpec, begin: int, end: int) -> Log:
    spec = checked.spec
    pane, horizon = duration_ms(spec.monitor.pane), duration_ms(spec.labels.horizon)
    sources = frozenset(spec.labels.source_rank)
    join = JoinRules(pane, horizon, HOUR_MS, spec.labels.source_rank, 400 * DAY_MS, HOUR_MS)
    rules = WindowRules(pane, HOUR_MS, horizon, label_sources=sources)
    return Log(pane, horizon, rules, join, spec.monitor.review_sample, begin, end)


def _hours(event_time: Ints, pane_ms: int) -> Iterator[tuple[int, int]]:
    """Bounds of the rows of each hour; an hour lies in one pane."""
    assert pane_ms % HOUR_MS == 0
    _, starts = np.unique(event_time // HOUR_MS, return_index=True)
    yield from zip(starts.tolist(), [*starts[1:].tolist(), len(event_time)], strict=True)


def _calibration(history: Transactions, margin: Floats, as_of: int) -> IsotonicRegression:
    """Probability of fraud by score, from the labels that a history has: silent transactions count as genuine."""
    labels = history_labels(history, as_of)
    fraud = set(labels.event_id[labels.label == "fraud"].tolist())
    known = np.array([event_id in fraud for event_id in history.event_id.tolist()], dtype=np.float64)
    return IsotonicRegression(out_of_bounds="clip").fit(margin, known)


class Scorer:
    """Decides hours of traffic with the product's policy and sample."""

    def __init__(
        self, checked: CheckedSpec, thresholds: Thresholds, model: Model, calibration: IsotonicRegression
    ) -> None:
        self._policy, self._sampling = Policy(checked), Sampling(checked)
        self._thresholds, self._model, self._calibration = thresholds, model, calibration
        self._encode = msgspec.json.Encoder().encode
        self._rng = np.random.default_rng(7)
        self.share = checked.spec.monitor.review_sample

    def score(self, chunk: Transactions, change: float, pane_ms: int) -> tuple[Columns, list[bytes], ScoreSummary]:
        """The columns, the score records and the summary of one hour; some rows come twice."""
        margin = self._model.margin(chunk, change)
        again = np.flatnonzero(self._rng.random(len(chunk)) < DUPLICATES)
        rows = np.concatenate([np.arange(len(chunk)), again])
        duplicate = np.arange(len(rows)) >= len(chunk)
        t, margin = chunk.take(rows), margin[rows]
        ids, customers = t.event_id.tolist(), t.customer_id.tolist()
        decoded = Decoded(rows, ids, hash_ids(ids), t.event_time, t.amount, {"customer": customers}, {})
        score = special.expit(margin)
        decision = self._policy.decide(score, self._thresholds, None)
        drawn = self._sampling.draw(decoded.id_hash, decision) & ~duplicate
        group = self._sampling.card_groups(decoded)
        noise = special.expit(margin + self._rng.normal(0.0, 0.5, len(rows)))
        alone = np.stack([noise, score]) >= self._thresholds.review
        members = alone[0] + 2 * alone[1]
        rule = np.where(t.channel == "online", 0, -1)
        columns = Columns(
            ids, t.event_time, decision.astype(np.int64), duplicate, drawn, group, members,
            self._calibration.predict(margin), t.fraud_kind > 0, t.amount, t.channel == "online",
        )  # fmt: skip
        scores = [
            self._encode(
                Score(
                    event_id, time, time, s, DECISIONS[d], "model", "cards", "1", "champion", "oracle", 1.0, copy, [],
                    bits, value, "online" if r == 0 else None, g, self.share if picked else msgspec.UNSET,
                )
            )
            for event_id, time, s, d, copy, bits, value, r, g, picked in zip(
                ids, t.event_time.tolist(), score.tolist(), decision.tolist(), duplicate.tolist(), members.tolist(),
                t.amount.tolist(), rule.tolist(), group.tolist(), drawn.tolist(), strict=True,
            )
        ]  # fmt: skip
        return columns, scores, _summary(columns, rule, t.amount, pane_ms)


def _summary(columns: Columns, rule: Ints, amount: Ints, pane_ms: int) -> ScoreSummary:
    """The summary of one hour: counts by numpy, and those of the rates by the product."""
    decided = SimpleNamespace(
        decision=columns.decision,
        sampled=columns.drawn,
        card_group=columns.group,
        rules=SimpleNamespace(names=["online"], rule=rule),
    )
    batch: Any = SimpleNamespace(decided=decided, enriched=SimpleNamespace(duplicate=columns.duplicate))
    one = rate_counts(batch, slice(None), np.zeros(len(rule), np.int64), 1)[0]
    number = np.bincount(columns.decision, minlength=3).tolist()
    money = np.zeros(3, np.int64)
    np.add.at(money, columns.decision, amount)
    alerts = {name: int((columns.members >> place & 1).sum()) for place, name in enumerate(MEMBERS)}
    pane = PaneSummary(
        int(columns.event_time[0]) // pane_ms * pane_ms, len(rule), int(columns.duplicate.sum()), 0, 0,
        dict(zip(DECISIONS, number, strict=True)), dict(zip(DECISIONS, money.tolist(), strict=True)),
        {}, {}, alerts, [], {}, sampled=one[0], groups=one[1], rules=one[2],
    )  # fmt: skip
    return ScoreSummary("cards", "1", "champion", pane_ms, "transactions", 0, 0, 1, 0, [pane])


@dataclass
class Rows:
    """The records, and of each its verdict (1 fraud, 0 genuine, -1 silent), its review weight (0: none) and the review
    probability that its label states (NaN: none).
    """

    columns: Columns
    pane: Ints
    verdict: Ints
    weight: Floats
    stated: Floats

    @classmethod
    def of(cls, log: Log) -> Rows:
        """From the score and label records alone."""
        columns, rank = log.columns, log.join_rules.source_rank
        row_of = {columns.event_id[row]: row for row in np.flatnonzero(~columns.duplicate).tolist()}
        holds: dict[int, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        for label in log.labels:
            row = row_of[label["event_id"]]
            if label["labelled_at"] - int(columns.event_time[row]) > 2 * log.horizon_ms:
                continue
            order = (rank[label["source"]], label["labelled_at"], label["offset"])
            if row not in holds or order > holds[row][0]:
                holds[row] = order, label
        verdict, weight = np.full(len(columns.event_id), -1), np.zeros(len(columns.event_id))
        probability = np.full(len(columns.event_id), np.nan)
        for row, (_, label) in holds.items():
            verdict[row] = label["label"] == "fraud"
            stated = label.get("review_probability")
            if stated is not None:
                probability[row] = stated
                weight[row] = 1 / float(f"{stated:.3g}") if columns.decision[row] else 0.0
        return cls(columns, columns.event_time // log.pane_ms * log.pane_ms, verdict, weight, probability)


def _same_sample(log: Log, checked: CheckedSpec) -> bool:
    """Whether the drawn rows are those that the definition gives, computed with Python's integers."""
    first, second = checked.pseudonyms.mixing_key("review-sample")
    whole = 2**64

    def finalise(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % whole
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % whole
        return x ^ (x >> 31)

    columns, bound = log.columns, int(checked.spec.monitor.review_sample * whole)
    hashes = hash_ids(columns.event_id).view(np.uint64).tolist()
    expected = [finalise((finalise(h ^ first) + second) % whole) < bound for h in hashes]
    approved = (columns.decision == 0) & ~columns.duplicate
    return bool((columns.drawn == (np.array(expected) & approved)).all())


@dataclass(frozen=True)
class Recomputed:
    """One window and positive set, recomputed. `interval` is None where none is due."""

    numerator: int
    denominator: int
    face: tuple[float, float]
    value: float | None
    interval: tuple[float, float] | None


def recompute(rows: Rows, inside: Bools, positive: tuple[int, ...]) -> Recomputed:
    """The false-positive rate of the rows `inside`."""
    c = rows.columns
    alert = np.isin(c.decision, positive)
    wrong = alert & (rows.verdict == 0)
    n, fraud = int(inside.sum()), int((inside & (rows.verdict == 1)).sum())
    fp, unknown = int((inside & wrong).sum()), int((inside & alert & (rows.verdict < 0)).sum())
    face = (fp / (n - fraud), (fp + unknown) / (n - fraud))
    once = inside & ~c.duplicate
    silent = once & alert & (rows.verdict < 0)
    # Repeated event ids stay silent, so a window with a repeated alert is never complete as published.
    weighed = unknown > 0
    if weighed and (fp == 0 or bool((rows.weight[inside & wrong] == 0).any())):
        return Recomputed(fp, n - fraud, face, None, None)
    weights = np.where(wrong, rows.weight if weighed else 1.0, 0.0)
    total = min(float(weights[inside].sum()), float(fp + unknown))
    missed = int((inside & ~alert & (rows.verdict == 1)).sum())
    value = total / (n - missed - (int((inside & alert).sum()) - total))
    if fp < 5:
        return Recomputed(fp, n - fraud, face, value, None)
    # Cells count weights in thousandths; without a silent alert among first copies, every label counts once.
    exact = bool(silent.any())
    weights = np.where(wrong, np.round(1000 * rows.weight) / 1000 if exact else 1.0, 0.0)
    return Recomputed(fp, n - fraud, face, value, _jackknife(c.group, once, alert, weights, rows.verdict))


def _jackknife(group: Ints, once: Bools, alert: Bools, weights: Floats, verdict: Ints) -> tuple[float, float] | None:
    def rate(keep: Bools) -> float:
        fp = float(weights[keep].sum())
        missed = int((keep & ~alert & (verdict == 1)).sum())
        return fp / (int(keep.sum()) - missed - (int((keep & alert).sum()) - fp))

    whole = rate(once)
    left_out = np.array([rate(once & (group != g)) for g in range(32)])
    error = math.sqrt(31 / 32 * float(((left_out - whole) ** 2).sum()))
    if not 0 < whole < 1 or error == 0:
        return None
    half = float(stats.t.ppf(0.975, 31)) * error / (whole * (1 - whole))
    centre = math.log(whole / (1 - whole))
    return 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))


Found = Mapping[int, list[Figure]]


def _one(found: list[Figure], metric: str, dimension: str) -> Figure:
    return next(f for f in found if f.metric == metric and f.dimension == dimension)


def _check_recomputation(result: Result, rows: Rows, found: Found) -> None:
    different: dict[str, int] = {}
    compared = 0
    for pane, reported in found.items():
        inside = rows.pane == pane
        for name, positive in POSITIVE.items():
            figure, again = _one(reported, "fpr", name), recompute(_cut(rows, inside), inside[inside], positive)
            statistics = figure.statistics
            checks = {
                "counts": (figure.numerator, figure.denominator) == (again.numerator, again.denominator),
                "face": _close(statistics["face_low"], again.face[0])
                and _close(statistics["face_high"], again.face[1]),
                "value": _close(figure.value, _clipped(again.value, figure)),
                "interval": (figure.interval is None) == (again.interval is None)
                and all(map(_close, figure.interval or (), again.interval or ())),
            }
            compared += len(checks)
            for what, same in checks.items():
                different[what] = different.get(what, 0) + (not same)
    result.at_least("figures_compared", compared, 100)
    result.figures["figures_different"] = different
    for what, number in different.items():
        result.check(f"{what} of every mature window equal the recomputation", number == 0)


def _check_every_figure(result: Result, log: Log, rows: Rows, found: Found) -> None:
    """Every figure of labels, as `monitor-thin` compares them."""
    c = rows.columns
    all_rows = monitor_labels.Rows(
        np.array(DECISIONS)[c.decision], c.amount, c.duplicate, rows.verdict, rows.stated,
        np.where(c.drawn, log.review_sample, np.nan), c.group, np.where(c.online, "online", ""),
        np.full(len(rows.verdict), ""), {name: (c.members >> at & 1) > 0 for at, name in enumerate(MEMBERS)},
    )  # fmt: skip
    compared, different = 0, set[str]()
    for pane, reported in found.items():
        again = monitor_labels.labelled_figures(all_rows.take(np.flatnonzero(rows.pane == pane)))
        of_labels = {(f.metric, f.dimension): f for f in reported if f.labelled}
        different |= {metric for metric, _ in again.keys() ^ of_labels.keys()}
        for key in again.keys() & of_labels.keys():
            compared += 1
            if not _same_figure(of_labels[key], again[key]):
                different.add(key[0])
    result.figures["metrics_different"] = sorted(different)
    result.at_least("figures_of_labels_compared", compared, 200)
    result.check("every figure of labels equals the recomputation", not different)


def _same_figure(reported: Figure, wanted: monitor_labels.Recomputed) -> bool:
    numbers = [(reported.value, wanted.value), (reported.low, wanted.low), (reported.high, wanted.high)]
    numbers += [(reported.statistics.get(name), value) for name, value in wanted.statistics.items()]
    numbers += zip(reported.interval or (None, None), wanted.interval or (None, None), strict=True)
    counts = (reported.numerator, reported.denominator), (wanted.numerator, wanted.denominator)
    return counts[0] == counts[1] and all(_close(*pair) for pair in numbers)


def _cut(rows: Rows, inside: Bools) -> Rows:
    c = rows.columns
    cut = {name: getattr(c, name)[inside] for name in list(Columns.__annotations__)[1:]}
    return Rows(Columns([], **cut), rows.pane[inside], rows.verdict[inside], rows.weight[inside], rows.stated[inside])


def _close(one: float | None, other: float | None) -> bool:
    return (one is None) == (other is None) and (one is None or other is None or abs(one - other) <= TOLERANCE)


def _clipped(value: float | None, figure: Figure) -> float | None:
    if value is None or figure.low is None or figure.high is None:
        return None
    return min(max(value, figure.low), figure.high)


def _truth(rows: Rows, pane: int, alert: Callable[[Columns], Bools]) -> float:
    """The hidden false-positive rate of a window."""
    inside = (rows.pane == pane) & ~rows.columns.duplicate & ~rows.columns.fraud
    return float(alert(rows.columns)[inside].mean())


def _check_coverage(result: Result, rows: Rows, found: Found, *, few: bool) -> None:
    names = [("fpr", "review+block", lambda c: c.decision > 0), ("fpr", "block", lambda c: c.decision == 2)]
    names += [("member_fpr", name, lambda c, m=place: (c.members >> m & 1) > 0) for place, name in enumerate(MEMBERS)]
    for metric, dimension, alert in names:
        bounded, held, intervals, covered = 0, 0, 0, 0
        widths = []
        for pane, reported in found.items():
            figure, truth = _one(reported, metric, dimension), _truth(rows, pane, alert)
            if figure.low is not None and figure.high is not None:
                bounded += 1
                held += figure.low - TOLERANCE <= truth <= figure.high + TOLERANCE
            if figure.interval is not None:
                intervals += 1
                covered += figure.interval[0] <= truth <= figure.interval[1]
                widths.append((figure.interval[1] - figure.interval[0]) / truth if truth else 0.0)
        label = f"{metric}_{dimension}"
        result.figures[label] = {
            "bounds": bounded, "contain": held, "intervals": intervals, "cover": covered,
            "median_width_relative_to_the_rate": round(float(np.median(widths)), 3) if widths else None,
        }  # fmt: skip
        result.check(f"{label}: every window has bounds", bounded == len(found))
        result.check(f"{label}: bounds contain the truth in 95 of 100 windows", held >= 0.95 * bounded)
        if dimension == "review+block":
            result.at_least("windows_with_an_interval", intervals, 15 if few else 100)
            result.check(f"{label}: intervals cover the truth in 90 of 100 windows", covered >= 0.9 * intervals)
            result.check(
                f"{label}: and are not wider than {WIDEST:g} times the rate", float(np.median(widths)) <= WIDEST
            )


def _check_errors(result: Result, rows: Rows, found: Found) -> None:
    """Mean absolute errors of the point estimate, of the naive rates and of CBPE, on the windows that have one."""
    errors: dict[str, list[float]] = {"estimate": [], "naive_labelled": [], "naive_silent_is_fraud": [], "cbpe": []}
    c = rows.columns
    for pane, reported in found.items():
        figure = _one(reported, "fpr", "review+block")
        if figure.value is None:
            continue
        truth = _truth(rows, pane, lambda columns: columns.decision > 0)
        inside = (rows.pane == pane) & ~c.duplicate
        alert, genuine = inside & (c.decision > 0), inside & (rows.verdict == 0)
        expected = 1 - c.calibrated
        estimates = {
            "estimate": figure.value,
            "naive_labelled": (genuine & alert).sum() / max(genuine.sum(), 1),
            "naive_silent_is_fraud": figure.statistics["face_low"] or 0.0,
            "cbpe": expected[alert].sum() / expected[inside].sum(),
        }
        for name, value in estimates.items():
            errors[name].append(abs(float(value) - truth))
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    result.figures["mean_absolute_error"] = {name: round(value, 6) for name, value in mean.items()}
    result.at_least("windows_with_an_estimate", len(errors["estimate"]), 15)
    for name in ("naive_labelled", "naive_silent_is_fraud", "cbpe"):
        result.check(f"the error of the estimate is below that of {name}", mean["estimate"] < mean[name])
