"""What the detector of drift events takes and returns: windows of histograms, series, shifts and events.

The detector needs neither Kafka nor Redis::

    detector = DriftDetector(DriftRules(pane_ms=HOUR_MS, false_alarms_per_year=4, series=series))
    for window in windows:  # DriftWindow, in order of `start`; windows without traffic may be absent
        report = detector.update(window)
        for event in report.events:
            ...  # DriftEvent: detected (status "open") or ended ("recovered", "accepted")

`series` are the `SeriesInfo` by name; `drift_series.describe(checked_spec, manifest)` derives them from an ensemble.
All times are UTC epoch milliseconds of event time. A histogram is a vector of counts ``(n_bins,)`` on the bins of the
reference profile; its last bin counts missing values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from numpy.typing import ArrayLike

# What a series describes. A `rate` is a feature that follows the volume of traffic, such as a count per hour.
SeriesKind = Literal["feature", "rate", "member", "score", "decision"]
# How a distribution changed. `offset` also covers every change of shape that is none of the others.
ChangeKind = Literal["scale", "offset", "missing", "mapping"]
# `accepted`: the change lasted, so it is a chronic state now and the detector learns the new distribution.
# `replaced`: a new version has other bins or members, so that nothing shows any more whether the change lasts.
EventStatus = Literal["open", "recovered", "accepted", "replaced"]
DetectorState = Literal["learning", "watching", "alarm"]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
YEAR_MS = 365 * DAY_MS


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """Where a series comes from and who reads it.

    Attributes:
        name: as in the reference profile (``customer.count_1h``, ``member:xgb``, ``score``), or ``decision``.
        fields: input fields of the transaction that it is computed from, the most direct one first.
        aggregate: of a view, or the function of a derived column; empty for members and scores.
        entity: of a view; empty otherwise.
        reach_ms: length of a view's window and delay; 0 without one.
        members: names of the members that read it; for ``member:<name>`` that member; empty for score and decision.
        edges: edges of the bins of the profile; empty for decisions.
        logarithmic: whether its values are logarithms of the field, so that a scale appears as an offset.
        categorical: whether its values are codes, so that distances between them have no meaning.
        key: digest of everything that makes two histograms of this series comparable. If it changes, the detector
            learns the series again.
        weight: for a member, its share of the total weight; 0 otherwise.
    """

    name: str
    kind: SeriesKind
    fields: tuple[str, ...] = ()
    aggregate: str = ""
    entity: str = ""
    reach_ms: int = 0
    members: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    logarithmic: bool = False
    categorical: bool = False
    key: str = ""
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class DriftWindow:
    """The counts of one closed window of one pane, of one ensemble.

    `counts` has a histogram for each series with rows. They contain only transactions that were scored with complete
    features. `rows` are all transactions of the window, `incomplete` those that were not counted for that reason.
    """

    start: int
    rows: int
    counts: Mapping[str, ArrayLike]
    ensemble: str = ""
    version: str = ""
    incomplete: int = 0


@dataclass(frozen=True, slots=True)
class SeriesShift:
    """How one series differs from its reference. Evidence and p-values are natural logarithms.

    Attributes:
        distance, psi, ks: see `stream_scorer.monitor.drift`.
        evidence: sum of ``-log(p)`` over the windows of the event; the p-values are those of this series alone.
        missing, missing_before: shares of missing values in the event and in the reference.
        factor: estimated ratio of the values of the field now and before, where `kind` is `scale`; else None.
    """

    info: SeriesInfo
    kind: ChangeKind
    distance: float
    psi: float
    ks: float
    evidence: float
    rows: int
    missing: float
    missing_before: float
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class MemberEffect:
    """A member that reads changed series: how many, and the change of its mean calibrated score times its weight."""

    member: str
    series: tuple[str, ...]
    effect: float


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """A change of the traffic that happened at one time, with what it affects.

    The detector returns an event once when it detects it (`status` open) and once when it ends (`recovered` or
    `accepted`), with the same `id`. Its feed ends it as `replaced`.

    Attributes:
        id: the same whenever the same windows are read again.
        kind: of the series with the most evidence.
        series: the changed series, most evidence first. At the detection it has at least one.
        fields: input fields that explain the changed series, best explanation first. Empty if only members changed.
        entities: entities of the changed views, in the order of `series`.
        members: the members that read changed series, largest effect first.
        first_window, detected_window: starts of the first window with the change and of the one that completed the
            evidence. Both windows are `pane_ms` long.
        rows: transactions from the first window to the end of the one that completed the evidence: the delay.
        log_evidence: logarithm of the e-detector when it alarmed.
        run_length: expected number of windows between false alarms, from `false_alarms_per_year`.
        ended: start of the window with which it ended; None while it is open.
    """

    id: str
    ensemble: str
    version: str
    kind: ChangeKind
    series: Sequence[SeriesShift]
    fields: Sequence[str]
    entities: Sequence[str]
    members: Sequence[MemberEffect]
    first_window: int
    detected_window: int
    pane_ms: int
    rows: int
    log_evidence: float
    run_length: float
    false_alarms_per_year: float
    status: EventStatus = "open"
    ended: int | None = None

    @property
    def windows(self) -> int:
        """The delay in windows: 1 if the first changed window was enough."""
        return (self.detected_window - self.first_window) // self.pane_ms + 1


@dataclass(frozen=True, slots=True)
class ChronicShift:
    """The difference of a series over a week from its training profile.

    `price` is the change of a member's mean calibrated score times its share of the weight, or of the mean score; None
    for features and decisions.
    """

    series: str
    distance: float
    psi: float
    ks: float
    rows: int
    price: float | None = None


@dataclass(frozen=True, slots=True)
class DriftReport:
    """The result of one window.

    Attributes:
        state: `learning` without enough history: then there is never an event.
        log_evidence: logarithm of the e-detector; an event needs `threshold`, at least ``log(run_length)``.
        evidence: by series, ``-log(p)`` of this window.
        events: events that were detected or ended with this window.
        missing_windows: number of windows that the detector still needs until it watches; 0 if it does.
    """

    start: int
    state: DetectorState
    log_evidence: float
    run_length: float
    threshold: float
    evidence: Mapping[str, float]
    events: Sequence[DriftEvent] = ()
    missing_windows: int = 0


@dataclass(frozen=True, slots=True)
class DriftRules:
    """Settings of the detector. `false_alarms_per_year` is for all series and versions of an ensemble together."""

    pane_ms: int = HOUR_MS
    false_alarms_per_year: float = 4.0
    series: Mapping[str, SeriesInfo] = field(default_factory=dict)

    @property
    def run_length(self) -> float:
        """Expected number of windows between false alarms."""
        return YEAR_MS / self.pane_ms / self.false_alarms_per_year
