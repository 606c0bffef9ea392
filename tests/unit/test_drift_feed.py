"""The feed of the drift detector on counters in memory: records, gauges, restarts, a new leader, new versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec import UNSET

from stream_scorer.ensemble.manifest import NoCalibrator, Series, Thresholds, WeightedMean
from stream_scorer.monitor import drift_feed
from stream_scorer.monitor.drift_feed import DriftFeed
from stream_scorer.monitor.drift_incidents import DriftBoard, subject_of
from stream_scorer.monitor.drift_series import describe
from stream_scorer.monitor.drift_types import HOUR_MS, DriftEvent, SeriesInfo
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.monitor.tally import cell_label
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import MonitorMetric
from stream_scorer.spec import load_spec
from stream_scorer.state.counters import Batch
from tests.support.counters import MemoryCounterServer, MemoryCounterStore

SPEC = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"
EDGES = (1.0, 2.0, 3.0, 4.0)
CHANGE = 14 * 24 + 8
P = np.array([0.1, 0.3, 0.3, 0.2, 0.08, 0.02])


def series(key: str, bins: str = "") -> dict[str, SeriesInfo]:
    return {
        "amount": SeriesInfo("amount", "feature", ("amount",), members=("gbm",), edges=EDGES, key=f"a{bins}"),
        "member:gbm": SeriesInfo("member:gbm", "member", members=("gbm",), edges=EDGES, key=key, weight=1.0),
    }


class Monitor:
    """One topic with panes of two series; the version changes its member at pane `new_version`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, change: int = CHANGE, new_version: int = 10**9, bins: str = ""
    ) -> None:
        self.server = MemoryCounterServer()
        self.change, self.new_version = change, new_version
        self.rng = np.random.default_rng(1)
        self.at = 0
        self.metrics = Metrics(MONITOR_METRICS)
        self.now_s = 0.0
        # Ensembles whose manifests the registry does not return.
        self.missing: set[str] = set()
        monkeypatch.setattr(
            drift_feed,
            "describe",
            lambda _checked, manifest: series(f"member {manifest.version}", bins * int(manifest.version)),
        )
        self.passed_on: list[Sequence[DriftEvent]] = []
        self.feed = self.open()

    def open(self, epoch: str = "e") -> DriftFeed:
        self.store = MemoryCounterStore(self.server)
        self.store.open(epoch, {"summaries:0": 0})
        profile = {name: Series(list(EDGES), [200, 300, 300, 100, 80, 20]) for name in ("amount", "member:gbm")}
        manifests = SimpleNamespace(
            manifest=lambda ensemble, version: (
                None if ensemble in self.missing else SimpleNamespace(version=version, reference_profile=profile)
            )
        )
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        return DriftFeed(
            self.store, None, manifests, self.metrics, pane_ms=HOUR_MS, false_alarms_per_year=4.0,  # type: ignore[arg-type]
            on_events=self.passed_on.append, clock=clock,  # type: ignore[arg-type]
        )  # fmt: skip

    def count(self, first: int, stop: int, ensemble: str = "cards") -> None:
        """Count the transactions of these hours."""
        for hour in range(first, stop):
            p = P[::-1] if hour >= self.change else P
            counts: dict[str, int] = {"n": 2_000, "d:approve": 1_980, "d:review": 20}
            for prefix, shares in (("f:amount:", p), ("m:gbm:", P)):
                found = self.rng.multinomial(2_000, shares)
                counts |= {f"{prefix}{place}": int(number) for place, number in enumerate(found) if number}
            version = "2" if hour >= self.new_version else "1"
            cells: dict[tuple[int, str], Mapping[str, int]] = {
                (hour * HOUR_MS, cell_label(ensemble, version, "champion")): counts
            }
            self.store.apply(Batch("summaries:0", self.at, self.at + 1, cells, {}))
            self.at += 1

    def read(self, stop: int) -> list[MonitorMetric]:
        """Turn until every pane before hour `stop` is read."""
        records = []
        for _ in range(stop // drift_feed.MAX_PANES_PER_TURN + 2):
            records += self.feed.turn(self.store.changed(), stop * HOUR_MS)
            self.feed.settle()
        return records


def opened(records: list[MonitorMetric]) -> list[tuple[str, int]]:
    return [(r.dimension, r.window_start // HOUR_MS) for r in records if r.metric == "drift_event" and not r.closed]


def test_closed_panes_become_states_evidence_and_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(monkeypatch)
    monitor.count(0, CHANGE + 6)
    records = monitor.read(CHANGE + 6)
    states = [r.dimension for r in records if r.metric == "drift_state"]
    assert (len(states), states[0], states[CHANGE - 1], states[-1]) == (CHANGE + 6, "learning", "watching", "alarm")
    assert opened(records) == [("offset:amount", CHANGE)] or opened(records) == [("scale:amount", CHANGE)]
    event = monitor.feed.events()[0]
    assert monitor.passed_on[-1] == [event]
    assert (event.status, list(event.fields), event.ensemble, event.version) == ("open", ["amount"], "cards", "1")
    gauge = monitor.metrics.registry.get_sample_value
    labels = {"ensemble": "cards", "kind": event.kind, "series": "amount"}
    assert gauge("stream_scorer_drift_event", labels) == 1
    assert gauge("stream_scorer_drift_learning", {"ensemble": "cards"}) == 0
    assert all(r.value >= 0 for r in records if r.metric == "drift_evidence" and r.value is not None)


def test_the_chronic_state_has_a_price_and_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(monkeypatch)
    monitor.count(0, 8 * 24)
    records = [r for r in monitor.read(8 * 24) if r.metric == "drift_chronic"]
    # On two days, the whole week before them.
    assert [(r.window_start // HOUR_MS, r.window_end // HOUR_MS) for r in records[::2]] == [(0, 168), (24, 192)]
    by_series = {r.dimension: r for r in records[-2:]}
    assert by_series["amount"].statistics["price"] is None
    # The share of the first bin is 0.1 instead of 0.2, that of the fourth 0.2 instead of 0.1: values 1 and 3.5.
    assert by_series["member:gbm"].statistics["price"] == pytest.approx(0.25 / 0.98, rel=0.02)
    assert by_series["member:gbm"].rows == pytest.approx(168 * 2_000 * 0.98, rel=0.01)
    assert monitor.feed.events() == []


def test_a_pane_is_read_once_closed_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(monkeypatch)
    monitor.count(0, 10)
    assert [r.window_start // HOUR_MS for r in monitor.read(6) if r.metric == "drift_state"] == list(range(6))
    assert monitor.read(6) == []
    assert [r.window_start // HOUR_MS for r in monitor.read(8) if r.metric == "drift_state"] == [6, 7]


def test_another_leader_continues_from_the_saved_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(monkeypatch)
    monitor.count(0, CHANGE + 6)
    monitor.read(CHANGE + 2)
    first = monitor.feed
    monitor.feed = monitor.open()
    again = monitor.read(CHANGE + 6)
    states = [r.dimension for r in again if r.metric == "drift_state"]
    assert len(states) < 2 * drift_feed.SAVE_EVERY
    assert states[-1] == "alarm"
    assert [e.first_window // HOUR_MS for e in monitor.feed.events()] == [CHANGE]
    first.resign()
    assert first.events() == []


def test_after_a_loss_of_redis_the_windows_of_the_log_are_learnt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(monkeypatch)
    monitor.count(0, CHANGE + 6)
    expected = [e.id for e in _read(monitor, CHANGE + 6)]
    monitor.server.lose_head()
    monitor.at = 0
    monitor.rng = np.random.default_rng(1)
    monitor.feed = monitor.open("another epoch")
    assert monitor.feed.turn({}, 10 * HOUR_MS) == []
    monitor.count(0, CHANGE + 6)
    assert [e.id for e in _read(monitor, CHANGE + 6)] == expected


def _read(monitor: Monitor, stop: int):  # type: ignore[no-untyped-def]
    monitor.read(stop)
    return monitor.feed.events()


def test_a_new_version_keeps_the_history_of_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(monkeypatch, new_version=CHANGE - 2)
    monitor.count(0, CHANGE + 6)
    records = monitor.read(CHANGE + 6)
    assert opened(records)[0][0].endswith(":amount")
    assert monitor.feed.events()[0].version == "2"


def test_an_event_of_a_series_that_a_new_version_has_with_other_bins_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(monkeypatch, new_version=CHANGE + 6, bins="x")
    monitor.count(0, CHANGE + 7)
    (event,) = _read(monitor, CHANGE + 6)
    records = monitor.read(CHANGE + 7)
    (ended,) = monitor.feed.events()
    assert (ended.id, ended.status) == (event.id, "replaced")
    assert [r.revision for r in records if r.metric == "drift_event" and r.closed] == [2]
    labels = {"ensemble": "cards", "kind": event.kind, "series": "amount"}
    assert monitor.metrics.registry.get_sample_value("stream_scorer_drift_event", labels) == 0
    board = DriftBoard()
    board.publish(monitor.feed.events())
    assert ("drift", subject_of(event).text) in board.findings().over


def test_saved_state_with_other_panes_or_events_of_another_release_is_learnt_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = Monitor(monkeypatch)
    monitor.count(0, 50)
    monitor.read(50)
    monitor.store.keep("drift-ended:cards", b'[{"id": 1}]')
    monitor.feed = monitor.open()
    monitor.feed._pane_ms = HOUR_MS // 4
    monitor.count(50, 51)
    monitor.feed.turn(monitor.store.changed(), 51 * HOUR_MS)
    (stream,) = monitor.feed._streams.values()
    assert stream.detector.pane_ms == HOUR_MS // 4


def panes_of(records: list[MonitorMetric], ensemble: str) -> list[int]:
    return [r.window_start // HOUR_MS for r in records if r.metric == "drift_state" and r.ensemble == ensemble]


def test_an_ensemble_whose_manifest_is_away_waits_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(monkeypatch, new_version=5)
    for ensemble in ("cards", "wires"):
        monitor.count(0, 10, ensemble)
    monitor.missing = {"wires"}
    away = monitor.read(8) + monitor.read(8)
    assert (panes_of(away, "cards"), panes_of(away, "wires")) == (list(range(8)), [])
    assert [r.getMessage() for r in caplog.records] == [
        "drift detection of wires waits for at most a day: the manifest of version 1 cannot be loaded (closed panes "
        "that wait: 8)"
    ]
    # Another leader begins at the pane that waits. What the others have read is not read again, nor their version.
    monitor.feed._unsaved_event = True
    monitor.feed.settle()
    monitor.feed = monitor.open()
    assert panes_of(monitor.read(9), "cards") == [8]
    assert monitor.feed._streams["cards"].series == series("member 2")
    monitor.missing = set()
    assert panes_of(monitor.read(9), "wires") == list(range(9))
    back = monitor.read(10)
    assert (panes_of(back, "cards"), panes_of(back, "wires")) == ([9], [9])


def test_a_version_without_a_manifest_is_passed_after_a_day_and_not_waited_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(monkeypatch, new_version=6)
    monitor.count(0, 8)
    monitor.missing = {"cards"}
    for turn in range(2 * 144):
        monitor.now_s += 300.0
        if turn == 144:  # half a day; another worker is the leader from now on, and the monitor was down for days
            monitor.now_s += 300_000.0
            monitor.feed = monitor.open()
        assert monitor.read(5) == [] and monitor.feed._next == 0
    monitor.now_s += 1_200.0  # counts as ten minutes
    assert monitor.read(5) == [] and monitor.feed._next == 0
    monitor.now_s += 600.0
    assert monitor.read(5) == [] and monitor.feed._next == 5 * HOUR_MS
    passed = "drift detection of cards passed 5 panes: the manifest of version 1 could not be loaded for a day"
    assert [r.getMessage() for r in caplog.records][-1] == passed and len(caplog.records) < 30
    monitor.feed = monitor.open()
    assert monitor.read(6) == [] and monitor.feed._next == 6 * HOUR_MS
    # The next version is waited for.
    assert monitor.read(8) == [] and monitor.feed._next == 6 * HOUR_MS
    monitor.missing = set()
    assert panes_of(monitor.read(8), "cards") == [6, 7]


def member(name: str, weight: float, *inputs: str) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, weight=weight, inputs=inputs, format="onnx", sha256=name, preprocess_sha256="",
        calibrator=NoCalibrator(), ranks=[],
    )  # fmt: skip


def test_series_of_the_cards_spec_name_fields_entities_and_readers() -> None:
    names = ["customer.count_1h", "customer.mean_7d", "device_age.is_new", "amount_log", "channel_code"]
    members = [member("one", 3.0, *names[:2]), member("two", 1.0, names[0], names[3])]
    columns = [*names, "member:one", "member:two", "score"]
    manifest = SimpleNamespace(
        features=names, members=members, feature_hash="f", combiner=WeightedMean(), link="logit",
        final_calibrator=NoCalibrator(), incomplete_calibrator=UNSET, thresholds=Thresholds("p", 0.3, 0.8),
        reference_profile={name: Series([0.5], []) for name in columns},
    )  # fmt: skip
    found = describe(load_spec(SPEC), manifest)  # type: ignore[arg-type]
    assert list(found) == [*columns, "decision"]
    assert found["customer.mean_7d"].fields == ("amount", "customer_id")
    assert (found["customer.count_1h"].kind, found["customer.count_1h"].entity) == ("rate", "customer")
    assert found["customer.count_1h"].members == ("one", "two")
    assert found["customer.mean_7d"].reach_ms == 7 * 24 * HOUR_MS
    assert (found["amount_log"].fields, found["amount_log"].logarithmic) == (("amount",), True)
    assert (found["channel_code"].categorical, found["device_age.is_new"].categorical) == (True, True)
    assert found["member:one"].weight == pytest.approx(0.75)
    members[0].sha256 = "another file"
    again = describe(load_spec(SPEC), manifest)  # type: ignore[arg-type]
    assert {name for name in found if found[name].key != again[name].key} == {"member:one", "score", "decision"}
