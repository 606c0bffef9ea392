"""What flows: the records of every topic this product writes or reads, as `msgspec` structs.

The JSON schemas under `schemas/` are made from these structs (`make schemas`) and a test holds the two equal.
Times are UTC epoch milliseconds, money is an integer of minor units, NaN is null. The value of the `transactions`
topic is the user's and is declared in the pipeline spec, not here.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

from stream_scorer.structs import prepare

# A double represents integers up to 2^53 exactly, so JSON readers in every language do.
EXACT_INTEGERS = 2**53
# What decoding raises for bytes that are no record: another shape, not JSON, a string not in UTF-8, nested too deep.
NOT_A_RECORD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Decision = Literal["approve", "review", "block"]
DECISIONS: tuple[Decision, ...] = ("approve", "review", "block")
# "override" is reserved: nothing produces it yet.
DecisionSource = Literal["model", "fallback", "list", "override"]
LabelValue = Literal["fraud", "genuine"]
MemberStatus = Literal["ok", "missing", "disabled"]
Arm = Literal["champion", "canary"]
ARMS: tuple[Arm, ...] = ("champion", "canary")
# A verdict on a version; drift of a field or score; an input that is silent, late or unreadable; labels that stop; the
# budgets of latency and of errors; the circuit breaker of a member.
IncidentKind = Literal["verdict", "drift", "feed", "labels", "latency", "errors", "breaker"]
INCIDENT_KINDS: tuple[IncidentKind, ...] = get_args(IncidentKind)
# Random groups of cards. There are many cards per group, and 31 degrees of freedom widen a 95 % interval by 4 %
# compared with infinitely many.
CARD_GROUPS = 32
# The verdict on a version under test; see `stream_scorer.control.verdict`.
Finding = Literal["rise", "fall", "harmless", "undecided"]
# How a member differs from the member of the same name in another version: in the preparation of an input (scale,
# offset, imputation, clip), in its inputs (added, removed), in what it answers to an input (mapping of a category's
# codes, response), in its scores as a whole (inverted, score), or in its weight. "policy": calibration or thresholds.
CauseKind = Literal[
    "scale", "offset", "imputation", "clip", "added", "removed", "mapping", "response", "inverted", "score", "weight",
    "policy", "combination",
]  # fmt: skip
Author = Literal["person", "monitor", "scorer"]
LabelFinding = Literal["harm", "cleared", "undecided"]
Action = Literal[
    "promote", "confirm", "rollback", "canary", "shadow", "stop", "retire", "disable", "enable", "hold", "release",
    "recover",
]  # fmt: skip

# Decimals of a member's weight and contribution on `contributions`. Their errors, and the sum of the errors of 32
# contributions (1.6e-10), stay below the 1e-9 to which recorded numbers add up.
WEIGHT_DECIMALS, CONTRIBUTION_DECIMALS = 9, 11

# Status codes of a feature value, as they stand in `LineageRow.feature_status`.
FRESH, STALE, MISSING, DEFAULT, PARTIAL = 0, 1, 2, 3, 4
# Why a score is called degraded when one of its features is stale.
FEATURES_STALE = "features_stale"
# Likewise when a window reaches back to before the beginning of the log that the features were built from.
FEATURES_PARTIAL = "features_partial"


class Record(msgspec.Struct, frozen=True):
    """Base of every record: immutable, unknown fields ignored (backward compatible)."""


class Score(Record, frozen=True):
    """Topic `scores`: one per transaction, slim.

    `rule` is the segment or list of the policy that held; null where the version's own thresholds decided.
    `card_group` (0 to 31) is the random group of the transaction's card, from which intervals of rates are computed.
    `review_propensity` is the probability with which the spec's random review sample drew this approved transaction;
    absent if it is not in the sample (ADR 0032).
    """

    event_id: str
    event_time: int
    scored_at: int
    score: float | None
    decision: Decision
    decision_source: DecisionSource
    ensemble: str
    version: str
    arm: str
    policy_version: str
    coverage: float
    duplicate: bool
    degraded: list[str]
    member_alerts: int
    value: int
    rule: str | None = None
    card_group: int | None = None
    review_propensity: float | msgspec.UnsetType = msgspec.UNSET


class MemberContribution(NamedTuple):
    """One member's part in one score. `contribution` is in units of z (log-odds for the logit link)."""

    name: str
    score: float | None
    weight: float
    contribution: float
    status: MemberStatus


class Members(Record, frozen=True, omit_defaults=True):
    """The members' parts in one score as parallel lists in the order of the manifest, so that names stand once.

    `score` is null where a member is missing; `weight` is rounded to 9 decimals; `contribution` is in units of z
    (log-odds for the logit link), rounded to 11 decimals. An empty or absent `status` means that all members are ok.
    """

    name: list[str]
    score: list[float | None]
    weight: list[float]
    contribution: list[float]
    status: list[MemberStatus] = []

    def rows(self) -> list[MemberContribution]:
        """The same, one member at a time."""
        status = self.status or ["ok"] * len(self.name)
        return list(map(MemberContribution, self.name, self.score, self.weight, self.contribution, status))


class Alternative(Record, frozen=True):
    """What a version that did not decide would have said."""

    version: str
    z: float | None
    decision: Decision


class Source(Record, frozen=True):
    """Where the transaction came from."""

    topic: str
    partition: int
    offset: int


class AppliedOffset(Record, frozen=True):
    """One input partition's next offset, as the features of a score saw it."""

    topic: str
    partition: int
    next_offset: int


class ShardOffset(Record, frozen=True):
    """One input partition's next offset, as the features of one shard saw it."""

    shard: int
    topic: str
    partition: int
    next_offset: int


class SegmentThresholds(Record, frozen=True):
    """Thresholds of a segment of the policy."""

    review: float
    block: float


class Contribution(Record, frozen=True, omit_defaults=True):
    """Topic `contributions`: one per transaction, the members' parts in its score.

    `base + sum(contribution) == z` to 1e-9; `score`, `z` and `base` are null when the quorum failed. `alternatives` are
    the other versions in play, none of which decided; `degraded` as on `scores`; absent means empty for both.

    `source` also locates the lineage: the record on topic `lineage`, on the same partition number, whose headers
    `source.first_offset` and `source.next_offset` enclose `source.offset`.
    """

    event_id: str
    ensemble: str
    version: str
    arm: str
    base: float | None
    z: float | None
    score: float | None
    members: Members
    source: Source
    alternatives: list[Alternative] = []
    degraded: list[str] = []


class LineageRow(Record, frozen=True):
    """One transaction's row of a record on topic `lineage`, with what the record states once; see `serde.lineage`.

    `features` are in the order of the manifest's `features`. `place` is the transaction's row in its micro-batch.
    `applied_offsets` is the vector of input positions that the features saw at the start of the micro-batch (labels:
    including those of the micro-batch itself). Where features lie in several shards, it holds what all of them saw, and
    `applied_offsets_ahead` where one saw more.

    Ages are milliseconds of event time: `partitions_age`, how far the slowest other partition lagged behind the
    transaction, is the age of features of entities seen from several partitions; `labels_age`, how long ago the newest
    label was given, of features made of labels. Any other feature has age 0. Null: not known, or no such feature.

    `thresholds` are those of the policy's segment; null where the manifest's own apply. `control_offset` is the command
    that put the versions in play; null in a replay. `manifest_sha256` is the digest of the manifest that decided; empty
    in records that were written before topic `lineage` existed.
    """

    event_id: str
    ensemble: str
    version: str
    arm: str
    link: str
    source: Source
    place: int
    features: list[float | None]
    feature_status: list[int]
    feature_hash: str
    spec_hash: str
    applied_offsets: list[AppliedOffset]
    code_version: str
    partitions_age: int | None = None
    labels_age: int | None = None
    applied_offsets_ahead: list[ShardOffset] = []
    control_offset: int | None = None
    thresholds: SegmentThresholds | None = None
    manifest_sha256: str = ""


class FeatureReason(Record, frozen=True):
    """One input of a member: its value, and what it added to the member's own margin."""

    feature: str
    value: float | None
    contribution: float


class Reason(Record, frozen=True):
    """One line of an alert's explanation; `features` are the member's strongest inputs, where they were looked for."""

    member: str
    contribution: float
    text: str
    features: list[FeatureReason] = []


class Alert(Score, frozen=True, kw_only=True):
    """The score record of a transaction that somebody may look at, with its strongest contributions.

    Topic `alerts`: every decision other than approve. Topic `review-sample`: the approved transactions that the spec's
    random review sample drew, all with `review_propensity`.

    `disagreement` has the versions that are compared with this one (the last good version during a probation, canary or
    champion, a withdrawn version) and approve the transaction. Review such alerts first: their labels decide which
    version is right.
    """

    base: float | None
    z: float | None
    reasons: list[Reason]
    disagreement: list[str] = []


class PaneSummary(Record, frozen=True):
    """Exact, mergeable counts of one event-time pane within one micro-batch and source partition.

    A histogram is sparse and flat: `[bin, count, bin, count, ...]`, bins as in the manifest's reference profile
    (the last bin of a series counts the missing values). A histogram of a feature counts no values that are stale,
    partial or not available, and those of members and scores no rows without features: they are no evidence of drift.
    `incomplete` are the rows without features. `left_out` holds, per member, the 2x2 counts
    `[both, as scored only, left-out only, neither]` of "alert as scored" against "alert with that member left out";
    `against`, per other version in play, the same of "alert as scored" against "alert by that version".

    Without repeated event ids: `sampled` is the number of approved transactions in the random review sample, `groups`
    holds per decision the transactions by `Score.card_group`, sparse as a histogram, and `rules` per segment or list of
    the policy its decisions.
    """

    pane: int
    rows: int
    duplicates: int
    degraded: int
    fallback: int
    decisions: dict[str, int]
    money: dict[str, int]
    features: dict[str, list[int]]
    members: dict[str, list[int]]
    member_alerts: dict[str, int]
    score: list[int]
    left_out: dict[str, list[int]]
    against: dict[str, list[int]] = {}
    incomplete: int = 0
    sampled: int = 0
    groups: dict[str, list[int]] = {}
    rules: dict[str, dict[str, int]] = {}


class CardAlerts(Record, frozen=True):
    """The cards that this version or another one alerts, within one micro-batch and source partition.

    A card is the spec's partition entity, or the single transaction if the spec has no entities. Columns with one entry
    per card that has an alert: `card` is a keyed 64-bit hash (16 hexadecimal digits; the key depends on the pair of
    versions and on `scorer.id_key`); `this` and `other` are the event times of its first alert by this version and by
    the other one, null without an alert.

    `event` and `value` are the event id and the value of the card's first alert here. They have no entries where they
    are not needed.

    `rows` is the number of transactions that count. `excluded` ones do not: repeated event ids, transactions without a
    card, without features or without a member that failed, decisions by the fallback or by a list, and all transactions
    while a command disables a member in one of the versions and not the same one, by digest, in the other. `against`
    has the 2x2 counts of the `rows`, as `PaneSummary.against`.
    """

    rows: int
    excluded: int
    card: list[str]
    this: list[int | None]
    other: list[int | None]
    event: list[str] = []
    value: list[int] = []
    against: list[int] = []


class PreparedInput(Record, frozen=True):
    """How an input that two versions prepare differently looks to one member, on the same transactions.

    `candidate` and `baseline` are the preparations: imputed value, lower and upper clip, offset, scale. `rows` and
    `alerted` count all transactions, and those that either version alerts. Each has three numbers for regular values,
    for values that are missing before preparation, and for values that are clipped differently: transactions, those in
    which the versions see values of different bins of the reference profile, and the sum of these distances in bins.
    """

    candidate: list[float | None]
    baseline: list[float | None]
    rows: list[int]
    alerted: list[int]


class MemberPair(Record, frozen=True):
    """One member of the version under test, the candidate, compared with the one that belongs to it in the baseline.

    `output`, `weight` and `member` have the 2x2 counts `[both, candidate only, changed only, neither]` of "alert by the
    candidate" against "alert if this member's output, its weight, or both were as in the baseline"; empty if it is the
    same in both. `shares` are its shares of the weight in both versions. `scores` has the number of transactions and
    the sums of a, b, a^2, b^2 and ab, where a and b are the member's scores in the candidate and in the baseline, in
    thousandths on the scale of the link.

    `answers` has, for transactions that either version alerts and per input, the difference a - b by bin of the
    reference profile, flat and sparse: `[bin, transactions, sum, ...]`; `answered` is the number of these transactions,
    the sum of the differences and of their squares. `categories` are those of the inputs that are codes of a category.
    `inputs` are the inputs that are prepared differently; `added` and `removed` those that only one version reads.
    `coefficients` are those of stacking, null for another combiner. `ranked`: its outputs differ only because the link
    `rank` has other reference scores.
    """

    shares: tuple[float, float]
    output: list[int] = []
    weight: list[int] = []
    member: list[int] = []
    scores: list[int] = []
    answers: dict[str, list[int]] = {}
    answered: list[int] = []
    categories: list[str] = []
    inputs: dict[str, PreparedInput] = {}
    added: list[str] = []
    removed: list[str] = []
    coefficients: tuple[float, float] | None = None
    ranked: bool = False


class PairDifferences(Record, frozen=True):
    """Members of a candidate and of its baseline compared on the `rows` transactions of a micro-batch that both scored.

    `members` has the members that differ. `policy` has the 2x2 counts of "alert by the candidate" against "alert with
    the final calibrator and the thresholds of the baseline"; empty if they are the same. If versions also differ in
    something else, such as the combiner, the link or a removed member, `changes` has that in words, and `combination`
    the counts of "alert by the candidate" against "alert if everything were as in the baseline except the members of
    both", instead of `policy`.
    """

    rows: int
    members: dict[str, MemberPair] = {}
    policy: list[int] = []
    combination: list[int] = []
    changes: list[str] = []


class ScoreSummary(Record, frozen=True):
    """Topic `score-summaries`: what one micro-batch scored of one source partition, by event-time pane.

    `first_offset`..`next_offset` is the range of input offsets it covers (dead-lettered records included). `cards` has
    the alerted cards by the version that this one is compared with (the last good version on probation, canary or
    champion, a withdrawn version). `newest` is the newest event time among its transactions, null without any.
    `differences` compares the members of this version with those of the other version under comparison, for the whole
    micro-batch; it is in the first summary of the micro-batch only.
    """

    ensemble: str
    version: str
    arm: str
    pane_ms: int
    topic: str
    partition: int
    first_offset: int
    next_offset: int
    dead_letters: int
    panes: list[PaneSummary]
    control_offset: int | None = None
    cards: dict[str, CardAlerts] = {}
    newest: int | None = None
    differences: dict[str, PairDifferences] = {}

    def newest_at(self, at: int) -> int | None:
        """`newest`, and at most `at`, the timestamp of its record (0: none), ms.

        An event whose clock is ahead must not stand for time that has not passed. The record timestamp is the scorer's
        clock at the commit, and is the same when the topic is read again.
        """
        return self.newest if self.newest is None or at <= 0 else min(self.newest, at)


class Outcome(Record, frozen=True):
    """Topic `outcomes`: one per label or change of label, with what was decided when the transaction was scored.

    A change is a change of label, source or review probability. It carries what it replaces, so that a reader who
    counts outcomes subtracts the previous one and needs no memory of its own. `review_probability` is what the label
    states; `review_propensity`, `card_group` and `rule` are what the score states. `label_partition` is the partition
    of `labels` that the label is from.
    """

    event_id: str
    event_time: int
    pane: int
    version: str
    arm: str
    policy_version: str
    decision: Decision
    member_alerts: int
    value: int
    label: LabelValue
    previous_label: LabelValue | None
    source: str
    review_probability: float | None
    labelled_at: int
    age: int
    ensemble: str = ""
    previous_source: str | None = None
    previous_review_probability: float | None = None
    review_propensity: float | None = None
    card_group: int | None = None
    rule: str | None = None
    label_partition: int | None = None


class MonitorMetric(Record, frozen=True):
    """Topic `monitor-metrics`: one windowed figure. A later `revision` of the same window replaces an earlier one.

    `value` is null where only bounds exist. Rates carry their counts; `label_age` is the age in milliseconds of event
    time between the window's end and the newest label or transaction seen, and null for a figure without labels.

    `low` and `high` bound the rate of the window itself, whatever the labels that are missing say. `interval_low` and
    `interval_high` are a 95 % interval of `value`, clustered by card: what other cards of the same traffic could have
    given. A figure of labels is `final` from the label age `labels.horizon` on; before, `maturity` is the share of its
    labels that is expected to have arrived, null if that is not known. `label_sources` counts the labels by source.
    """

    metric: str
    dimension: str
    window_start: int
    window_end: int
    revision: int
    closed: bool
    ensemble: str
    version: str
    value: float | None
    low: float | None
    high: float | None
    numerator: int | None
    denominator: int | None
    rows: int
    label_age: int | None
    statistics: dict[str, float | int | None]
    arm: str = ""
    interval_low: float | None = None
    interval_high: float | None = None
    maturity: float | None = None
    final: bool | None = None
    label_sources: dict[str, int] = {}


class ServedVersion(Record, frozen=True):
    """A version of an ensemble, and the sha256 of its manifest."""

    version: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
    manifest_sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class DisabledMember(Record, frozen=True):
    """A member that nobody counts on; `key` is the digest of all that makes its answers, see `manifest.member_key`."""

    name: str
    key: str


class Command(Record, frozen=True, kw_only=True):
    """Topic `control`: what somebody wants. It counts only at `expected_offset`; see `stream_scorer.control.state`.

    `share` (0 to 1), `salt` and `until` (event time) belong to `canary`, `member` to `disable` and `enable`, `version`
    to whatever acts on a version, `state` to `recover`. `at` is the author's clock and decides nothing. `expect_rise`
    belongs to `promote` and `canary`: the relative change of alerted cards that the author expects, 0.1 for 10 % more.
    `confirm` with the `version` of a canary confirms its share; otherwise it ends a probation. With a `version`,
    `rollback` and `confirm` count only if that version serves; a monitor always names it. `ladder` belongs to
    `canary`: the ascending shares through which a monitor raises it, one confirmation at a time. `keep` belongs to a
    monitor's `rollback` of a version on probation: the version stays in play as `ServingState.withdrawn`.
    """

    ensemble: str
    action: Action
    who: str
    why: str
    at: int
    expected_offset: int
    author: Author = "person"
    version: ServedVersion | None = None
    member: DisabledMember | None = None
    share: float | None = None
    salt: str | None = None
    until: int | None = None
    state: ServingState | None = None
    expect_rise: float | None = None
    ladder: list[float] | None = None
    keep: bool = False


class CanaryState(Record, frozen=True):
    """A version that decides for `share` of the entities, up to event time `until`.

    `confirmed`: whether a `confirm` has ended the comparison at this share. `ladder`: the ascending shares through
    which a monitor raises it; empty if only people do. `expect_rise`: see `Command`.
    """

    version: ServedVersion
    share: float
    salt: str
    until: int | None = None
    confirmed: bool = False
    ladder: list[float] = []
    expect_rise: float | None = None


class Hold(Record, frozen=True):
    """A person's word that the monitor shall not act."""

    who: str
    why: str
    at: int


class ServingState(Record, frozen=True, kw_only=True):
    """Topic `serving-state`: what is to serve, derived from `control` up to `control_offset`.

    On `probation` the `last_good` version is scored beside the champion, and `expect_rise` is what its `promote`
    declared (see `Command`). `withdrawn` is a version that a monitor rolled back: it is scored without deciding until
    labels have enough cards (ADR 0050). `recoveries` counts the `recover` commands: a log that was created again has
    lower offsets. `who`, `why`, `at` are of the last command.
    """

    ensemble: str
    control_offset: int
    champion: ServedVersion
    last_good: ServedVersion | None = None
    probation: bool = False
    canary: CanaryState | None = None
    shadows: list[ServedVersion] = []
    disabled: list[DisabledMember] = []
    retired: list[str] = []
    hold: Hold | None = None
    withdrawn: ServedVersion | None = None
    expect_rise: float | None = None
    recoveries: int = 0
    who: str
    why: str
    at: int


class LoadedMember(Record, frozen=True):
    """A member's file as it was loaded."""

    name: str
    format: str
    sha256: str


class AuditRecord(Record, frozen=True):
    """Topic `audit`: a scorer has loaded a version, or refused to: `refused` is the code, empty if it was loaded."""

    at: int
    instance: str
    group: str
    ensemble: str
    version: str
    manifest_sha256: str
    members: list[LoadedMember]
    refused: str
    message: str


class MemberHealth(Record, frozen=True):
    """Counts of one member since its scorer started.

    In `failed` of `batches` micro-batches it gave no usable score to a version that decides (champion or canary): it
    failed, was late, or was not called. `breaker`: 0 closed, 1 on trial, 2 open (the member is not called).
    """

    name: str
    batches: int
    failed: int
    breaker: int


class ScorerHealth(Record, frozen=True):
    """Counts of one scorer since it started. They only grow, so a lost heartbeat loses nothing.

    `latency` is the histogram of the milliseconds from the record timestamps of transactions to the commit of their
    scores: `latency[i]` values are at most `bounds[i]` and above the bound before it; the last one counts longer ones.
    """

    bounds: list[float]
    latency: list[int]
    members: list[MemberHealth] = []


class ScorerStatus(Record, frozen=True):
    """Topic `scorer-status`: what one scorer runs. It is published at every change and as a heartbeat.

    `control_offset` is the command in force here, `wanted_offset` the newest that counts. Where they differ, versions
    are `loading`, or `problem` has the reason. `in_play` are the versions it scores, the champion first. `health` is
    null in records of earlier releases.
    """

    instance: str
    group: str
    ensemble: str
    in_play: list[str]
    control_offset: int
    wanted_offset: int
    problem: str
    at: int
    loading: list[str] = []
    health: ScorerHealth | None = None


class CountedCards(Record, frozen=True):
    """Alerted cards: by both versions, only by the candidate (the version under test), only by the baseline.

    `waiting` cards have an alert whose grace period is not over, so they are not counted yet.
    """

    both: int
    candidate_only: int
    baseline_only: int
    waiting: int


class VerdictEvidence(Record, frozen=True):
    """Natural logarithms of the evidence for a rise and for a fall beyond the tolerances, and against each of them."""

    rise: float
    fall: float
    no_rise: float
    no_fall: float


class Cause(Record, frozen=True):
    """What moved the alerts of a version: the change of one member, of the policy or of the combination of members.

    `member` is null for the policy (final calibrator and thresholds), and for the combination: the combiner, the link,
    or members that only one version has.

    `kind` is what differs from the other version; `input` is the input concerned, null if it is not one input;
    `difference` describes it. `per_thousand` is the number of alerts per 1,000 transactions that the change adds, or
    removes if alerts fall.
    """

    kind: CauseKind
    member: str | None
    input: str | None
    difference: str
    per_thousand: float

    @property
    def subject(self) -> str:
        """What changed, in words."""
        if self.member is not None:
            return f"member {self.member}"
        return "the combination of members" if self.kind == "combination" else "the policy"


class Disagreement(Record, frozen=True):
    """A card that only one of two versions alerts: its first alert.

    `candidate`: whether the version under test raised it, or the baseline. `at` is the event time, `value` in minor
    units of the reference currency. `shadow`: the candidate was withdrawn by then, so the baseline decided.
    """

    at: int
    event_id: str
    value: int
    candidate: bool
    shadow: bool = False


class CommonAlert(Record, frozen=True):
    """A card that two versions alert: its first alert, with event time and value as in `Disagreement`."""

    at: int
    event_id: str
    value: int


class LabelCounts(Record, frozen=True):
    """Labels of cards that one version alerts alone, or both alert; values in minor units of the reference currency.

    `silent` cards were alerted and have no label, which means nothing.
    """

    fraud: int
    genuine: int
    silent: int
    fraud_value: int
    genuine_value: int


class LabelledVerdict(Record, frozen=True):
    """What labels of age `label_age` show about the cards on which two versions disagreed.

    `harm`: the alerts that only the candidate raised have less than half of the precision of those that only the
    baseline raised. `cleared`: they have more. `log_harm` and `log_cleared` are natural logarithms of the
    evidence. `waiting` cards have not reached the label age, or labels of a source are late; `missing` says what
    prevents a decision. Labels of all regular sources are known up to the full hour `known`, ms.

    `common` is null if the baseline alerted enough cards alone. Otherwise it counts the cards that both alerted,
    and the verdict compares with a quarter of their precision (ADR 0038).
    """

    finding: LabelFinding
    candidate_only: LabelCounts
    baseline_only: LabelCounts
    log_harm: float
    log_cleared: float
    label_age: int
    waiting: int
    missing: list[str]
    common: LabelCounts | None = None
    known: int | None = None


class Collection(Record, frozen=True):
    """The collection of cards for labels, while a withdrawn version is scored as a shadow (ADR 0050).

    `cards` is the number of cards that only the withdrawn version alerted, before and after its withdrawal. It ends
    with `enough` of them, or at the event time `until`, ms (null before the first transaction). `ended` says why it
    ended; empty while it runs.
    """

    cards: int
    enough: int
    until: int | None
    ended: str = ""


class InputChange(Record, frozen=True):
    """An input that a member sees differently in two versions, whether or not this moves alerts.

    `moved` is the share of the transactions in which the two values lie in different bins of the reference profile,
    `distance` the mean distance in bins.
    """

    member: str
    input: str
    kind: CauseKind
    difference: str
    moved: float
    distance: float


class VerdictRecord(Record, frozen=True, kw_only=True):
    """Topic `verdicts`: the state of a comparison of two versions. A later record of the same `id` replaces it.

    `id`, `since`, `rows`, `both`, `candidate_only` and `baseline_only` as on `incidents`; `cards` is what the verdict
    is based on. `missing` says what prevents a decision. At the rate so far, a decision takes `more_rows` more
    transactions and `more_ms` of event time; null if that cannot be expected. `due` is the command that the verdict
    leads to, null if it is undecided; `held_back` says why the monitor does not submit it. `cause` is what moved the
    alerts most; `inputs` are those that members see differently. After a rise or a fall, `disagreements` has the cards
    that only one version alerts, up to a limit, `common` those that both alert, and `labels` what their labels show
    later. `began` is the time of the command, ms, and `manifest_sha256` the digest of the version. While `collection`
    runs after a rollback, further cards are added; `cards` and the other counts stay those of the withdrawal.
    """

    id: str
    ensemble: str
    version: str
    baseline: str
    since: int
    at: int
    finding: Finding
    why: str
    rows: int
    both: int
    candidate_only: int
    baseline_only: int
    excluded: int
    cards: CountedCards
    evidence: VerdictEvidence
    missing: list[str]
    more_rows: int | None
    more_ms: int | None
    due: Action | None
    held_back: str
    cause: Cause | None = None
    inputs: list[InputChange] = []
    began: int = 0
    disagreements: list[Disagreement] = []
    labels: LabelledVerdict | None = None
    common: list[CommonAlert] = []
    collection: Collection | None = None
    manifest_sha256: str = ""


class Affected(Record, frozen=True):
    """Who an incident affects, from its first affected offset to its last update. Null: not known.

    `money` is the sum of their amounts in minor units of the spec's currency (its reference currency if it has rates).
    `how` says what is counted, or how the figures are estimated.
    """

    transactions: int | None = None
    cards: int | None = None
    alerts: int | None = None
    money: int | None = None
    how: str = ""


class Saved(Record, frozen=True):
    """What an action saved: false or missed alerts among `transactions` after it, at the excess rate before it.

    `alerts` is negative if the action brought alerts back that were missing. `money` as in `Affected`.
    """

    transactions: int
    alerts: int
    how: str
    money: int | None = None


class Incident(Record, frozen=True, kw_only=True):
    """Topic `incidents`: a condition that needs attention. A later record of the same `id` replaces it.

    `kind` is the kind of condition. The subject is what has the condition: `ensemble`, `version`, `member`, `field` (of
    the transaction, or a feature), `topic` and `partition`, `source` (of labels), and `aspect` of it (such as silent);
    empty or null where it does not apply. `subject` names it in words. While an incident is open, its kind and subject
    have no other one. `code` is the error code of most dead letters.

    `opened`, `updated` and `closed` are clocks of the monitor; `opened_event`, `updated_event` and `closed_event` are
    event times, null if not known. `first` has the first affected offset of each input partition, where known. `why`
    says what changed, `done` what the product did, `ended` why it is over. `statistics` has the figures of the last
    update, `limits` those that open the incident. `closed_by` is the person who closed it, empty if a monitor did; then
    `ended` is the reason that the person gave.

    `due` is the command that would end it, null if no command would; `held_back` says why the monitor does not submit
    it, empty if it does. `ended_by` is the offset of the newest command when the incident ended, by any author,
    and `command` its action.

    A verdict: `version`, the candidate, alerts more cards, or fewer, than the version `baseline` that scores the same
    transactions. `since` is the offset of the command that put it in play, `began` its time, ms. The `id` is the
    ensemble and `since`; if an incident of a former topic `control` has this id, with `began` between them. It ends
    with `-canary` for a canary that a `recover` restored together with a probation. `finding` is `rise` or `fall`.
    `cards` are the alerted cards, on which the finding is based. Of the `rows` transactions that count as evidence,
    `both` were alerted by both versions, `candidate_only` and `baseline_only` by one of them; `log_evidence` is the
    natural logarithm of the evidence. `member` is the suspect, null if there is none; `difference` describes how it
    differs from the baseline, and `input` is the input concerned, null if it is not one input.
    """

    id: str
    ensemble: str
    opened: int
    why: str
    kind: IncidentKind = "verdict"
    subject: str = ""
    version: str = ""
    member: str | None = None
    field: str | None = None
    topic: str = ""
    partition: int | None = None
    source: str = ""
    aspect: str = ""
    code: str = ""
    opened_event: int | None = None
    updated: int | None = None
    updated_event: int | None = None
    closed: int | None = None
    closed_event: int | None = None
    first: list[Source] = []
    affected: Affected | None = None
    done: str = ""
    saved: Saved | None = None
    ended: str = ""
    closed_by: str = ""
    statistics: dict[str, float | int | None] = {}
    limits: dict[str, float] = {}
    due: Action | None = None
    held_back: str = ""
    ended_by: int | None = None
    command: Action | None = None
    baseline: str = ""
    since: int = 0
    began: int | None = None
    rows: int = 0
    both: int = 0
    candidate_only: int = 0
    baseline_only: int = 0
    log_evidence: float = 0.0
    finding: Finding = "rise"
    cards: CountedCards | None = None
    input: str | None = None
    difference: str = ""


# Every record this product writes, by the default name of its topic.
TOPIC_RECORDS: dict[str, type[Record]] = {
    "scores": Score,
    "contributions": Contribution,
    "alerts": Alert,
    "review-sample": Alert,
    "score-summaries": ScoreSummary,
    "outcomes": Outcome,
    "monitor-metrics": MonitorMetric,
    "control": Command,
    "serving-state": ServingState,
    "scorer-status": ScorerStatus,
    "audit": AuditRecord,
    "incidents": Incident,
    "verdicts": VerdictRecord,
}


prepare(globals())
