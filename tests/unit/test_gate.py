"""The gate: its rules file, and what each rule measures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator

from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.cli import control
from stream_scorer.cli.gate import _champion, check_reason, refusal
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import CheckFailed, UsageError
from stream_scorer.gate import traffic
from stream_scorer.gate.drift import drift
from stream_scorer.gate.inputs import after_training, recent
from stream_scorer.gate.leak import differences, leak
from stream_scorer.gate.quality import fairness, quality
from stream_scorer.gate.result import GateReport, RuleResult
from stream_scorer.gate.traffic import RowSample, served_from_file, skew
from stream_scorer.gate.versions import cost, latency, load_candidate
from stream_scorer.kafka.topics import Topics
from stream_scorer.parquet import readable
from stream_scorer.positions import SourcePartition
from stream_scorer.records import LineageRow, ServedVersion, Source
from stream_scorer.replay.output import lineage_file
from stream_scorer.replay.pieces import Range
from stream_scorer.replay.skew import FeatureSkew, SkewReport
from stream_scorer.serde.raw import RawRecords
from stream_scorer.serde.schemas import make_schemas
from stream_scorer.settings import Settings
from stream_scorer.spec import load_spec
from stream_scorer.spec.gate_rules import Cost, Drift, Fairness, Latency, Leak, Quality, Skew, parse_rules
from stream_scorer.train.export import read_training_table, write_training_table
from stream_scorer.train.provenance import set_digest
from stream_scorer.train.recipe import TrainingSet
from tests.support.ensembles import FEATURES, compose, reference

SPEC: Any = SimpleNamespace(features=FEATURES, feature_hash="b" * 64, spec=SimpleNamespace(name="cards"))


@pytest.fixture
def ensemble(tmp_path: Path) -> Ensemble:
    compose(tmp_path / "ensemble")
    return Ensemble.load(tmp_path / "ensemble", version="2")


# ---- the rules file


@pytest.mark.parametrize(
    ("text", "named", "hint"),
    [
        ("version: 1\nlatency: {max_rato: 1.2}", "latency.max_rato is not known", "Did you mean max_ratio?"),
        ("version: 1\nlatncy: {max_ratio: 1.2}", "latncy is not known", "Did you mean latency?"),
        ("version: 1\nlatency: {}", "latency.max_ratio is missing", "Write a multiple"),
        ("version: 1\nlatency: {max_ratio: fast}", "latency.max_ratio: ", "Write a multiple"),
        ("version: 1\nquality: [{metric: auc, max_loss: 0}]", "quality[0].metric: ", "average_precision, roc_auc"),
        ("version: 1\nquality: {metric: recall}", "quality: ", "Write a list"),
        ("version: 1\nfairness: [{segment: channel, max_ratio: 0.5}]", "fairness[0].max_ratio: ", "at least 1"),
        ("version: 1\nfairness: [{segment: channel}]", "fairness[0] has no limit", "Write max_ratio"),
        ("version: 1\ncost: {}", "cost has no limit", "max_bytes"),
        ("version: 1\nskew: 0.01", "skew: ", "Write a mapping with max_share, min_scores"),
        ("version: 2", "version: ", "Write version: 1"),
        ("latency: {max_ratio: 1}", "version is missing", "Write version: 1"),
        ("- 1", "(top level): ", "begins with version: 1"),
        ("version: 1\ntraffic: 14d\nquality: []", "the file has no rule", "at least one of quality, latency"),
        ("version: [", "not valid YAML at line 1", ""),
        ("version: 2026-02-30", "not valid YAML: day", ""),
        (
            "version: 1\nquality: [{metric: recall, max_loss: 0}, {metric: recall, max_loss: 1}]",
            "quality has two rules for recall",
            "Keep one",
        ),
    ],
)
def test_an_error_names_the_field_and_what_to_write(text: str, named: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_rules(text)
    assert error.value.message.startswith(named)
    assert hint in error.value.hint


def test_the_schema_accepts_what_the_reader_accepts_and_refuses_unknown_keys() -> None:
    validator = Draft202012Validator(make_schemas()["gate-rules.schema.json"])
    good = {"version": 1, "leak": {}, "quality": [{"metric": "recall", "max_loss": 0.1}]}
    parse_rules(json.dumps(good))
    assert validator.is_valid(good)
    assert not validator.is_valid(good | {"leek": {}})
    assert not validator.is_valid(good | {"latency": {"max_ratio": 0}})


def test_the_digest_depends_on_the_rules_and_not_on_their_layout() -> None:
    block, flow = "version: 1\nlatency:\n  max_ratio: 1.5\n", "{latency: {max_ratio: 1.5}, version: 1}"
    assert parse_rules(block).sha256 == parse_rules(flow).sha256
    assert parse_rules(block).sha256 != parse_rules("version: 1\nlatency: {max_ratio: 1.6}").sha256


# ---- the versions


def test_a_candidate_that_does_not_reproduce_its_self_test_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ensemble"
    compose(folder)
    assert load_candidate(folder, "2", SPEC)[1].verdict == "pass"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["self_test"]["score"][0] += 0.01
    (folder / "manifest.json").write_text(json.dumps(manifest))
    candidate, result = load_candidate(folder, "2", SPEC)
    assert candidate is None
    assert (result.rule, result.verdict) == ("self_test", "refuse")
    assert "[artifact_self_test]" in result.reason


def test_a_candidate_that_reads_other_features_is_refused(tmp_path: Path) -> None:
    compose(tmp_path / "ensemble")
    other: Any = SimpleNamespace(features=FEATURES, feature_hash="c" * 64)
    assert "[artifact_features]" in load_candidate(tmp_path / "ensemble", "2", other)[1].reason


class Slow:
    """Scores nothing, and moves the clock by `seconds` per call."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def score(self, _rows: np.ndarray) -> None:
        self._clock[0] += self._seconds


def test_latency_is_a_multiple_of_the_champions() -> None:
    clock, rows = [0.0], np.zeros((3, 2))
    slow, fast = (Slow(clock, seconds) for seconds in (0.03, 0.02))

    def measured(candidate: Any, champion: Any, limit: float) -> Any:
        return latency(Latency(limit), candidate, champion, rows, clock=lambda: clock[0])

    assert measured(slow, fast, 1.4).verdict == "refuse"
    assert measured(slow, fast, 1.6).measured == pytest.approx(1.5)
    assert measured(fast, slow, 1.0).verdict == "pass"
    assert measured(slow, None, 9.0).reason.startswith("not measured")


def test_cost_has_a_limit_in_bytes_and_one_against_the_champion(ensemble: Ensemble) -> None:
    size = sum(member.size for member in ensemble.manifest.members)
    verdicts = [r.verdict for r in cost(Cost(max_bytes=size, max_ratio=1.0), ensemble, ensemble)]
    assert verdicts == ["pass", "pass"]
    verdicts = [r.verdict for r in cost(Cost(max_bytes=size - 1, max_ratio=0.99), ensemble, ensemble)]
    assert verdicts == ["refuse", "refuse"]


# ---- recent traffic


def test_drift_names_the_series_that_is_furthest_from_training(ensemble: Ensemble) -> None:
    rows = reference(4_000, seed=2)
    assert drift(Drift(0.1), ensemble, rows).verdict == "pass"
    rows[:, 0] *= 4.0
    result = drift(Drift(0.1), ensemble, rows)
    assert result.verdict == "refuse"
    assert "; customer.count_1h 0." in result.reason
    ignored = [*FEATURES, *(f"member:{name}" for name in ensemble.member_names), "score"]
    assert drift(Drift(0.1, ignored[:1]), ensemble, rows).measured < (result.measured or 0.0)  # type: ignore[operator]
    assert drift(Drift(0.1, ignored), ensemble, rows).reason.startswith("not measured")
    assert drift(Drift(0.1), ensemble, rows[:1_999]).reason.startswith("not measured: 1,999 transactions")


def test_a_sample_of_rows_is_even_whatever_the_size_of_the_parts() -> None:
    rows = np.arange(1_000.0)[:, None]
    found = []
    for size in (1, 7, 1_000):
        sample = RowSample(1, limit=50)
        for low in range(0, 1_000, size):
            sample.add(rows[low : low + size])
        found.append(sample.rows[:, 0].tolist())
    assert found[0] == found[1] == found[2]
    assert 50 <= len(found[0]) < 100
    assert len(set(np.diff(found[0]))) == 1


def test_skew_counts_only_features_that_the_candidate_reads() -> None:
    features = [FeatureSkew(name, 2_000, different, None, None, 1.0, []) for name, different in (("a", 0), ("b", 100))]
    report = SkewReport(2_000, 0, features)
    assert skew(Skew(0.01), report, ["a"]).verdict == "pass"
    result = skew(Skew(0.01), report, ["a", "b"])
    assert (result.verdict, result.measured) == ("refuse", 0.05)
    assert "differs: b 5.00%" in result.reason
    assert skew(Skew(0.05), report, ["b"]).verdict == "pass"
    # Scores without state record only the columns of the transaction.
    stateless = [*features, FeatureSkew("c", 999, 0, None, None, 0.0, [])]
    result = skew(Skew(0.05), SkewReport(2_000, 1_001, stateless), ["a", "c"])
    assert result.reason == "not measured: c is in 999 of 2,000 recorded scores, 1,000 are needed"
    for missing in (None, SkewReport(0, 0, []), SkewReport(999, 0, features)):
        assert skew(Skew(0.01), missing, ["a"]).reason.startswith("not measured")


def write_lineage(path: Path, places: list[tuple[int, int]], feature_hash: str) -> Path:
    """A file `lineage.parquet` with rows at `places` (partition and offset)."""
    with lineage_file(path) as file:
        for partition, offset in places:
            features = [float(partition), float(offset), None, 0.5]
            row = LineageRow(
                "e", "cards", "7", "champion", "logit", Source("transactions", partition, offset), 0, features,
                [0, 0, 2, 1], feature_hash, "s", [], "0",
            )  # fmt: skip
            file.add(msgspec.json.encode(row))
    return path / "lineage.parquet"


def test_recorded_features_come_by_partition_from_one_pass_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "_CHUNK", 2)
    opened: list[Path] = []
    monkeypatch.setattr(traffic, "readable", lambda path: opened.append(path) or readable(path))  # type: ignore[func-returns-value]
    places = [(1, 5), (0, 3), (1, 6), (0, 4), (1, 7)]
    served = served_from_file(write_lineage(tmp_path, places, SPEC.feature_hash), SPEC)
    found = {partition: list(served(partition, 0)) for partition in (0, 1, 2)}
    assert {one: [offset for offset, _, _ in rows] for one, rows in found.items()} == {0: [3, 4], 1: [5, 6, 7], 2: []}
    assert len(opened) == 1
    _, values, status = found[1][2]
    assert np.array_equal(values, [1.0, 7.0, np.nan, 0.5], equal_nan=True)
    assert status.tolist() == [0, 0, 2, 1]


def test_recorded_features_of_another_spec_are_refused(tmp_path: Path) -> None:
    served = served_from_file(write_lineage(tmp_path, [(0, 3)], "c" * 64), SPEC)
    with pytest.raises(UsageError, match="features other than those of the spec"):
        next(served(0, 0))
    fewer: Any = SimpleNamespace(features=FEATURES[1:], feature_hash="c" * 64)
    with pytest.raises(UsageError, match="rows that do not have 3 features"):
        next(served_from_file(tmp_path / "lineage.parquet", fewer)(0, 0))
    scores = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"features": [1]}), scores)
    with pytest.raises(UsageError, match="no column 'feature_hash'") as error:
        next(served_from_file(scores, SPEC)(0, 0))
    assert error.value.hint == "Give the lineage.parquet of a replay."


# ---- the training set


def make_set(rows: int = 20) -> TrainingSet:
    values = reference(rows)
    ids = [f"e{row}" for row in range(rows)]
    return TrainingSet(values, FEATURES, values[:, 2] > 0, np.arange(rows), event_id=ids)


def test_a_saved_training_set_has_the_digest_of_its_rows(tmp_path: Path) -> None:
    data = make_set()
    write_training_table(data, SPEC, tmp_path / "set.parquet")
    read = read_training_table(tmp_path / "set.parquet", FEATURES)
    assert read.event_id == data.event_id
    assert set_digest(read) == set_digest(data)
    with pytest.raises(UsageError, match="has no column 'unknown'"):
        read_training_table(tmp_path / "set.parquet", [*FEATURES, "unknown"])


def test_a_set_that_the_candidate_was_not_trained_on_is_refused(ensemble: Ensemble) -> None:
    nothing: Any = None
    result = leak(Leak(), make_set(), ensemble.manifest.training, nothing, nothing)
    assert result.verdict == "refuse"
    assert "was trained on another set" in result.reason


def test_differing_columns_are_counted_and_missing_values_are_equal() -> None:
    right = reference(100)
    given = right.copy()
    given[:3, 0] += 1.0
    given[5, 3] *= 1.0 + 1e-12
    given[0, 1] = np.nan if not np.isnan(right[0, 1]) else 1.0
    found = differences(FEATURES, given, right, 1e-9)
    assert [(each.name, each.rows) for each in found] == [(FEATURES[0], 3), (FEATURES[1], 1)]
    assert found[0].largest == pytest.approx(1.0)
    assert found[1].largest > 1e300


# ---- the paired evaluation


def alerts(transactions: int, frauds: int, found: int, caught: int, blocks: int = 0) -> Any:
    """With `blocks`, all of genuine transactions."""
    return SimpleNamespace(
        transactions=transactions, frauds=frauds, alerts=found, caught=caught, blocks=blocks, blocked_genuine=blocks,
        false_positive_rate=0.1, blocked_genuine_rate=0.1,
    )  # fmt: skip


def version(groups: dict[str, Any]) -> Any:
    return SimpleNamespace(
        groups=[SimpleNamespace(dimension="channel", value=name, alerts=each) for name, each in groups.items()],
        alerts=alerts(100, 10, 10, 5),
        average_precision=SimpleNamespace(value=0.5),
        trained_until=100,
        missing=0,
    )


def evaluation(value: float | None, low: float | None, high: float | None, groups: list[dict[str, Any]]) -> Any:
    difference = SimpleNamespace(value=value, low=low, high=high)
    names = ("average_precision", "false_positive_rate", "blocked_genuine_rate")
    differences_ = dict.fromkeys(names, difference)
    return SimpleNamespace(
        candidates=[SimpleNamespace(differences=differences_)],
        versions=[version(each) for each in groups],
        transactions=1_000,
        labelled=500,
        frauds=10,
        fraud_cards=10,
        first_event_time=90,  # a late transaction
        first_time=101,
        mature_share=0.5,
    )


def test_quality_is_not_measured_on_the_training_data_or_without_frauds() -> None:
    paired = evaluation(0.0, 0.0, 0.0, [{}, {}])
    assert quality(Quality("recall", 0.1), paired).verdict == "refuse"  # the stub has no such difference
    assert quality(Quality("average_precision", 0.1), paired).verdict == "pass"
    paired.frauds = 0
    assert "no known fraud" in quality(Quality("average_precision", 0.1), paired).reason
    assert quality(Quality("false_positive_rate", 0.1), paired).verdict == "pass"
    paired.frauds = 10
    paired.first_time = 100
    result = quality(Quality("false_positive_rate", 0.1), paired)
    assert (result.verdict, result.measured) == ("refuse", None)
    assert "trained on this range; start after 1970-01-01T00:00:00" in result.reason


def test_quality_is_not_measured_on_too_few_transactions_cards_or_labels() -> None:
    ranking, rate = Quality("average_precision", 0.1), Quality("false_positive_rate", 0.1)
    paired = evaluation(0.0, 0.0, 0.0, [{}, {}])
    paired.fraud_cards = 9  # each replicate has the same few cards, so its interval says nothing
    assert "9 cards with a known fraud, 10 are needed" in quality(ranking, paired).reason
    assert quality(Quality("average_precision", 0.1, "value"), paired).verdict == "pass"
    assert quality(rate, paired).verdict == "pass"
    paired.fraud_cards, paired.transactions = 10, 999
    for rule in (ranking, rate):
        assert quality(rule, paired).reason == "not measured: 999 transactions, 1,000 are needed"
    paired.transactions = 1_000
    mature = msgspec.structs.replace(ranking, min_mature=0.51)
    assert "50% of the transactions are older than the label horizon, 51% are needed" in quality(mature, paired).reason
    assert "--until" in quality(mature, paired).reason
    assert quality(msgspec.structs.replace(ranking, min_mature=0.5), paired).verdict == "pass"
    assert "are needed" not in quality(Quality("alert_rate", 0.1, min_mature=1.0), paired).reason
    paired.labelled = 0
    for rule in (rate, Quality("blocked_genuine_rate", 0.1)):
        assert quality(rule, paired).reason == "not measured: no transaction of the range has a label"


def test_a_ranking_is_not_compared_if_the_candidate_gives_fewer_scores() -> None:
    paired = evaluation(0.1, 0.05, 0.2, [{}, {}])
    paired.versions[1].missing = 200
    result = quality(Quality("average_precision", 0.1), paired)
    assert (result.verdict, result.measured) == ("refuse", None)
    assert "gives no score for 200 of 1,000 transactions, the champion for 0" in result.reason
    assert quality(Quality("false_positive_rate", 0.5), paired).verdict == "pass"  # the fallback decides these
    paired.versions[0].missing = 200
    assert quality(Quality("average_precision", 0.1), paired).verdict == "pass"


def test_the_worse_end_of_the_interval_must_be_within_the_limit() -> None:
    paired = evaluation(-0.005, -0.03, 0.02, [{}, {}])
    assert quality(Quality("average_precision", 0.02), paired).measured == pytest.approx(0.03)
    assert quality(Quality("average_precision", 0.02), paired).verdict == "refuse"
    assert quality(Quality("average_precision", 0.02, "value"), paired).verdict == "pass"
    # A false-positive rate is worse at its upper end.
    assert quality(Quality("false_positive_rate", 0.01), paired).measured == pytest.approx(0.02)
    assert quality(Quality("false_positive_rate", 0.02), paired).verdict == "pass"
    assert quality(Quality("blocked_genuine_rate", 0.01), paired).measured == pytest.approx(0.02)
    assert quality(Quality("average_precision", 1.0), evaluation(None, None, None, [{}, {}])).verdict == "refuse"
    assert quality(Quality("average_precision", 1.0), evaluation(0.0, None, None, [{}, {}])).verdict == "refuse"
    nan = float("nan")
    assert quality(Quality("average_precision", 1.0), evaluation(0.0, nan, nan, [{}, {}])).verdict == "refuse"


def test_fairness_limits_the_ratio_of_rates_and_the_difference_of_their_growth() -> None:
    fair = {
        "chip": alerts(2_000, 0, 20, 0),
        "atm": alerts(2_000, 0, 40, 0),
        "online": alerts(10, 0, 10, 0),
        "contactless": alerts(2_000, 0, 2, 0),
    }
    # A bias against the value with the lowest rate makes the rates more equal, and is found by its growth.
    biased = fair | {"contactless": alerts(2_000, 100, 130, 100)}
    paired = evaluation(0.0, 0.0, 0.0, [fair, biased])
    rule = Fairness("channel", max_ratio=3.0, max_ratio_to_champion=2.0)
    absolute, relative = fairness(rule, paired)
    assert absolute.measured == pytest.approx(40.5 / 20.5)
    assert absolute.verdict == "pass"
    assert relative.measured == pytest.approx(30.5 / 1_901 / (2.5 / 2_001))
    assert relative.verdict == "refuse"
    assert relative.reason.startswith("contactless 0.125% to 1.604%, ")
    same = fairness(rule, evaluation(0.0, 0.0, 0.0, [biased, fair]))
    assert [result.verdict for result in same] == ["refuse", "refuse"]
    assert same[0].measured == pytest.approx(40.5 / 2.5)
    assert fairness(rule, evaluation(0.0, 0.0, 0.0, [fair, fair]))[1].measured == 1.0
    # 2 alerts are noise, twice as many as well.
    noise = fair | {"contactless": alerts(2_000, 0, 19, 0)}
    assert fairness(rule, evaluation(0.0, 0.0, 0.0, [fair, noise]))[1].measured == 1.0
    alone = evaluation(0.0, 0.0, 0.0, [{"chip": fair["chip"]}])
    assert all(result.verdict == "refuse" for result in fairness(rule, alone))
    # Without labels, a false-positive rate is an alert rate.
    unlabelled = evaluation(0.0, 0.0, 0.0, [fair, fair])
    unlabelled.labelled = 0
    assert [result.measured for result in fairness(rule, unlabelled)] == [None, None]
    assert fairness(Fairness("channel", "alert_rate", max_ratio_to_champion=2.0), unlabelled)[0].verdict == "pass"


def test_fairness_of_blocks_sees_reviews_that_become_blocks() -> None:
    before = {name: alerts(2_000, 100, 200, 100) for name in ("chip", "atm", "online")}
    after = before | {"chip": alerts(2_000, 100, 200, 100, 60), "online": alerts(2_000, 100, 200, 100, 10)}
    paired = evaluation(0.0, 0.0, 0.0, [before, after])
    assert fairness(Fairness("channel", max_ratio_to_champion=1.0), paired)[0].verdict == "pass"
    for metric, rate in (("block_rate", 60.5 / 2_001), ("blocked_genuine_rate", 60.5 / 1_901)):
        rule = Fairness("channel", metric, max_ratio=9.0, max_ratio_to_champion=2.0)  # type: ignore[arg-type]
        between, growth = fairness(rule, paired)
        assert between.measured == pytest.approx(60.5 / 0.5)
        assert between.reason.startswith(f"chip {rate:.3%}, ")
        # Only one value has enough blocks for a growth.
        assert "fewer than two values of channel have 1,000 transactions and 20 blocks" in growth.reason
    paired = evaluation(0.0, 0.0, 0.0, [before, after | {"online": alerts(2_000, 100, 200, 100, 20)}])
    assert fairness(rule, paired)[1].measured == pytest.approx(60.5 / 20.5)


# ---- the range


class Log:
    """Two partitions of transactions, each with one record that cannot be read at its end."""

    def __init__(self, newest: list[int]) -> None:
        self._newest = newest

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        return {SourcePartition(topic, partition): (0, 200) for partition in range(len(self._newest))}

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        time = self._newest[source.partition]
        good = {"event_id": "e", "event_time": time, "customer_id": "c", "terminal_id": "t", "amount": 1}
        values = [json.dumps(good | {"currency": "EUR", "channel": "chip"}).encode(), b"{"]
        n = len(values)
        offsets = np.arange(stop - n, stop)
        yield RawRecords(source.topic, np.zeros(n, np.int32), offsets, np.full(n, time), [None] * n, values, [None] * n)


def test_recent_traffic_ends_at_the_newest_transaction_of_all_partitions() -> None:
    cards, day = load_spec(CARDS_SPEC), 86_400_000
    log: Any = Log([50 * day, 60 * day])
    rules = parse_rules("version: 1\ntraffic: 14d\nleak: {}")
    assert recent(log, Topics(), cards, rules, Range()).time_start == 46 * day
    assert recent(log, Topics(), cards, rules, Range(time_start=50 * day)).time_start == 50 * day
    assert recent(log, Topics(), cards, parse_rules("version: 1\nleak: {}"), Range()) == Range()


def test_the_range_begins_after_the_training_data_unless_it_is_given(tmp_path: Path) -> None:
    compose(tmp_path / "ensemble")
    assert after_training(tmp_path / "ensemble", Range()).time_start == 1_001
    assert after_training(tmp_path / "ensemble", Range(time_start=5)).time_start == 5
    assert after_training(tmp_path, Range()) == Range()


# ---- promote

FOUND: Any = SimpleNamespace(name="cards", version=ServedVersion("8", "digest"))


def test_an_override_is_part_of_the_reason_and_needs_one_of_its_own() -> None:
    settings: Any = {"gate.rules": "gate.yaml"}
    why = control._pass_gate(settings, FOUND, "fewer alerts", "incident 4711", None)
    assert why == "fewer alerts [gate skipped: incident 4711]"
    with pytest.raises(UsageError, match="needs a reason"):
        check_reason(" ")


@pytest.mark.parametrize("source", ["default", "stream-scorer.toml"])
def test_without_the_setting_there_is_no_gate(source: str) -> None:
    settings = Settings({"gate.rules": ""}, {"gate.rules": source})
    assert control._pass_gate(settings, FOUND, "fewer alerts", None, None) == "fewer alerts"


@pytest.mark.parametrize("source", ["flag", "STREAM_SCORER_GATE_RULES"])
@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_does_not_skip_the_gate(source: str, path: str) -> None:
    settings = Settings({"gate.rules": path}, {"gate.rules": source})
    with pytest.raises(UsageError, match=f"gate.rules is empty .from {source}") as error:
        control._pass_gate(settings, FOUND, "fewer alerts", None, None)
    assert error.value.exit_code == 2
    why = control._pass_gate(settings, FOUND, "fewer alerts", "incident 4711", None)
    assert why == "fewer alerts [gate skipped: incident 4711]"


class Console:
    """The state of `control` before and after the gate."""

    def __init__(self, *champions: str | None) -> None:
        self._states = [
            SimpleNamespace(states={"cards": SimpleNamespace(champion=ServedVersion(v, v))} if v else {})
            for v in champions
        ]

    @contextmanager
    def open(self, _settings: Any) -> Iterator[Any]:
        yield SimpleNamespace(read=lambda: self._states.pop(0), require_commands=lambda _name: self._states.pop(0))


def pass_gate(monkeypatch: pytest.MonkeyPatch, gate: Any, *champions: str | None) -> str:
    """The reason of a command whose gate is `gate`, while the version that serves changes as in `champions`."""
    monkeypatch.setattr(control, "_open_console", Console(*champions).open)
    monkeypatch.setattr(control, "_fetch", lambda _settings, _name, version: Path(version.manifest_sha256))
    monkeypatch.setattr(control, "_load", lambda _settings, _name, version: version)
    monkeypatch.setattr("stream_scorer.cli.gate.gate_promotion", gate)
    settings = Settings({"gate.rules": "gate.yaml"}, {"gate.rules": "flag"})
    return control._pass_gate(settings, FOUND, "fewer alerts", None, None)


def test_the_reason_names_the_rules_that_the_version_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(_settings: Any, candidate: Any, champion: Any, _training_set: Any) -> Any:
        assert (candidate, champion.version) == ((Path("digest"), "8"), "7")
        return SimpleNamespace(rules_sha256="0123456789abcdef")

    assert pass_gate(monkeypatch, accept, "7", "7") == "fewer alerts [gate passed: rules 0123456789ab]"
    with pytest.raises(CheckFailed, match="compared with version 7, but 9 serves now"):
        pass_gate(monkeypatch, accept, "7", "9")

    def alone(_settings: Any, _candidate: Any, champion: Any, _training_set: Any) -> Any:
        assert champion is None
        return SimpleNamespace(rules_sha256="0123456789abcdef")

    assert pass_gate(monkeypatch, alone, None, None).endswith("[gate passed: rules 0123456789ab]")
    with pytest.raises(CheckFailed, match="compared with no version, but 7 serves now"):
        pass_gate(monkeypatch, alone, None, "7")


def test_a_refusal_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> Any:
        report = GateReport(False, "cards 8", "cards 7", "0", 1, 0, 0.0, [RuleResult("leak", 1.0, 0.0, "refuse", "")])
        raise refusal(report)

    with pytest.raises(CheckFailed, match="the gate refuses cards 8: leak") as error:
        pass_gate(monkeypatch, refuse, "7")
    assert error.value.exit_code == 3


def test_an_alias_of_another_installation_is_no_default_champion() -> None:
    settings: Any = {"mlflow.champion_alias": False}
    with pytest.raises(UsageError, match="may name the version of another installation"):
        _champion(settings, None, "cards:8")
    assert _champion(settings, None, "./candidate") is None
