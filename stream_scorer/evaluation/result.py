"""The result of an evaluation as plain records, which become JSON, tables, pages and rules of a gate.

Money is an integer of minor units of the spec's reference currency. A rate is null where it is undefined.
"""

from __future__ import annotations

from stream_scorer.records import Record

# The dimension of label age, its values, and those from one label horizon on.
AGE = "label age"
AGE_NAMES = ("below 1/2 horizon", "1/2 to 1 horizon", "1 to 2 horizons", "2 to 4 horizons", "above 4 horizons")
MATURE_AGES = AGE_NAMES[2:]


class Interval(Record, frozen=True):
    """A figure with its 95 % interval: bootstrap over cards, null without one."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Alerts(Record, frozen=True):
    """Alerts of one version, under one rule, in one group of transactions.

    Unlabelled transactions are presumed genuine in `precision` and `false_positive_rate`. The other bounds take all
    unlabelled alerts for fraud (ADR 0006): the rates at face value are between them.

    Attributes:
        rule: ``thresholds`` (those of the version, with the segments and lists of the policy), or ``budget``.
        threshold: the lowest score of an alert; null if the policy has segments. budget: share of transactions.
        blocks: of the alerts, those with the decision block. blocked_genuine: of these, those that are no fraud;
            blocked_genuine_low: without the unlabelled ones. Both are 0 for a budget.
        unlabelled, unlabelled_alerts: without a label.
        caught: alerted frauds. value_caught, value_lost: their amount, and that of the other frauds.
        review_cost: of all alerts that are not blocks, at the given cost per review; for a budget of all alerts.
        saved: `value_caught` less `review_cost`.
    """

    rule: str
    threshold: float | None
    budget: float | None
    transactions: int
    labelled: int
    frauds: int
    alerts: int
    blocks: int
    blocked_genuine: int
    blocked_genuine_low: int
    caught: int
    unlabelled: int
    unlabelled_alerts: int
    precision: float | None
    precision_high: float | None
    recall: float | None
    false_positive_rate: float | None
    false_positive_rate_low: float | None
    value_fraud: int
    value_caught: int
    value_lost: int
    review_cost: int
    saved: int

    @property
    def alert_rate(self) -> float | None:
        """Alerts as a share of the transactions."""
        return _share(self.alerts, self.transactions)

    @property
    def block_rate(self) -> float | None:
        """Blocks as a share of the transactions."""
        return _share(self.blocks, self.transactions)

    @property
    def blocked_genuine_rate(self) -> float | None:
        """Blocked transactions that are no fraud, as a share of all that are none."""
        return _share(self.blocked_genuine, self.transactions - self.frauds)


class Group(Record, frozen=True):
    """Alerts at the thresholds of the version for one value of a dimension: a segment, ``day`` or ``label age``."""

    dimension: str
    value: str
    alerts: Alerts


class CalibrationBin(Record, frozen=True):
    """The transactions with a score in ``[low, high)``, the last bin with its upper end."""

    low: float
    high: float
    rows: int
    mean_score: float | None
    fraud_rate: float | None


class Calibration(Record, frozen=True):
    """Brier score, and reliability by bins of the score."""

    brier: float | None
    error: float | None
    bins: list[CalibrationBin]


class CardPrecision(Record, frozen=True):
    """Compromised cards among the `k` cards with the highest score of each day, as in the Handbook (chapter 4).

    A card that was among them and is compromised is left out on later days. `value` is the mean over days.
    """

    k: int
    days: int
    value: float | None
    by_day: list[tuple[int, float]]


class Detection(Record, frozen=True):
    """Fraud cases: the frauds of one card, without a gap of `gap_days` or more.

    Attributes:
        detected: cases with an alerted fraud. at_first: of these, by the first fraud.
        median_ms: from the first fraud of a detected case to its first alerted fraud; p90_ms likewise.
        frauds_before: mean number of frauds before the first alerted one, of detected cases.
        value_before: amount of all frauds before the first alerted one, including undetected cases.
    """

    gap_days: int
    cases: int
    detected: int
    at_first: int
    median_ms: float | None
    p90_ms: float | None
    frauds_before: float | None
    value_before: int


class VersionResult(Record, frozen=True):
    """One version of an ensemble.

    Attributes:
        label: what tables and pairs call it: its version, with the ensemble's name if two have the same version.
        missing: transactions without a score, because the quorum failed.
        intervals: of figures at the thresholds: precision, recall, false_positive_rate, value_caught.
        budgets: alerts at each alert budget; `budget_recall` their recall with intervals.
    """

    ensemble: str
    version: str
    label: str
    sha256: str
    members: list[str]
    formula: str
    review: float
    block: float
    trained_until: int
    missing: int
    average_precision: Interval
    roc_auc: Interval
    alerts: Alerts
    intervals: dict[str, Interval]
    budgets: list[Alerts]
    budget_recall: list[Interval]
    calibration: Calibration
    card_precision: list[CardPrecision]
    detection: Detection
    groups: list[Group]


class MemberResult(Record, frozen=True):
    """One distinct member, ranked by its own output.

    `versions` are the labels of those that use it; `missing` transactions have no output of it.
    """

    name: str
    format: str
    versions: list[str]
    missing: int
    average_precision: float | None
    roc_auc: float | None
    budgets: list[Alerts]


class Moved(Record, frozen=True):
    """Changed decisions that go back to the champion's if one part of the candidate is as in the champion.

    `gained` decisions are stricter than the champion's (review, or block instead of review), `lost` ones milder.
    `part` is ``output``, ``weight`` or ``member`` (both) of a member, or ``policy``: final calibrator and thresholds.
    ``combination`` takes its place if more than members and policy differs, such as the combiner, the link or a
    removed member.
    """

    member: str
    part: str
    gained: int
    lost: int


class Sides(Record, frozen=True):
    """Transactions by decision of both versions: alert or not.

    Of `both`, `to_block` are reviews of the champion that the candidate blocks, `to_review` the reverse. `cards_gained`
    and `cards_lost` count cards whose alerts change.
    """

    both: int
    only_candidate: int
    only_champion: int
    neither: int
    to_block: int
    to_review: int
    cards_gained: int
    cards_lost: int


class PairResult(Record, frozen=True):
    """A candidate against the champion, on the same transactions.

    Attributes:
        champion, candidate: their labels.
        frauds, genuine, unlabelled: transactions by label. differences: candidate less champion, with intervals.
        moved: which part of the candidate moved the decisions; a decision may have several causes, or none alone.
        unexplained: changed decisions that no part alone moves back.
    """

    champion: str
    candidate: str
    all: Sides
    frauds: Sides
    genuine: Sides
    unlabelled: Sides
    differences: dict[str, Interval]
    moved: list[Moved]
    unexplained: int


class Digests(Record, frozen=True):
    """sha256 of the features, of scores and decisions, of outcomes, and over the three."""

    features: str
    scores: str
    outcomes: str
    all: str


class Evaluation(Record, frozen=True):
    """The result of `evaluate`.

    Attributes:
        labels_as_of: labels until this time count (epoch ms). labels_later: labels that were given after it.
        labels_refused: labels that cannot be read; they count as absent.
        first_event_time, last_event_time: of the transactions in the range, late ones included. first_time: the running
            maximum of event time at the first one, which `--start` applies to.
        transactions: in the range, without `duplicates`. warmed: transactions that only updated features.
        fraud_cards: cards with a fraud: intervals are by card, so few of them are little evidence.
        refused: records in the range that cannot be read. label_horizon_ms: of the spec.
        versions: the champion first. members: the distinct ones of all versions. candidates: pairs with the champion.
        seconds: wall-clock seconds by stage, with several workers the sum over them. member_seconds: of the bare
            predictions, by member.
        resumed: transactions that an earlier run had completed. piece_rows: transactions per file.
    """

    spec: str
    spec_sha256: str
    input: dict[str, str]
    labels_as_of: int
    labels_known: int
    labels_later: int
    labels_refused: int
    label_horizon_ms: int
    first_event_time: int | None
    last_event_time: int | None
    first_time: int | None
    transactions: int
    labelled: int
    frauds: int
    fraud_cards: int
    duplicates: int
    warmed: int
    refused: int
    resumed: int
    review_cost: int
    replicates: int
    piece_rows: int
    digests: Digests
    versions: list[VersionResult]
    members: list[MemberResult]
    candidates: list[PairResult]
    seconds: dict[str, float]
    member_seconds: dict[str, float]
    out: str

    @property
    def mature_share(self) -> float | None:
        """The share of transactions that are at least as old as the label horizon at `labels_as_of`."""
        ages = [group for group in self.versions[0].groups if group.dimension == AGE]
        mature = sum(group.alerts.transactions for group in ages if group.value in MATURE_AGES)
        return _share(mature, self.transactions)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
