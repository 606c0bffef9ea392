"""The stages on rows in memory: what comes out, in any batching, with bad records and failing members among it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_scorer.control.cards import AlertedCards
from stream_scorer.ensemble.attribution import Explainer
from stream_scorer.ensemble.breaker import FAILURES
from stream_scorer.ensemble.breaker import State as BreakerState
from stream_scorer.ensemble.bulkhead import Bulkhead
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput
from stream_scorer.ensemble.lineup import DISABLED, Lineup, Split
from stream_scorer.ensemble.manifest import Input, NoCalibrator, Thresholds, Training
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.errors import StateUnavailable
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline import publish
from stream_scorer.pipeline.availability import Availability, State
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.card_alerts import evidence_rows
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import Enrich, EnrichInProcess
from stream_scorer.pipeline.in_flight import InFlight
from stream_scorer.pipeline.policy import turned_segments, unused_policy
from stream_scorer.pipeline.publish import DEAD_LETTER_HEAD_BYTES
from stream_scorer.pipeline.score import Scoring
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import CardAlerts, PairDifferences, Score, ScoreSummary, SegmentThresholds
from stream_scorer.serde.raw import RawRecords
from stream_scorer.serde.record_keys import wrong_keys
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.spec import CheckedSpec, load_spec, parse_spec
from stream_scorer.state.rows import MemoryRowStore
from tests.support.stages import CARDS, CHECKED, Collected, FixedClock, inputs, raw, run, simulated

KEYED = load_spec(CARDS, "k" * 32)


def compose(folder: Path, weight_of_b: float = 1.0) -> Path:
    def member(name: str, feature: str, slope: float, weight: float = 1.0) -> Draft:
        data = encode_dense(Dense([Layer([[slope]], [-3.0], "logistic")]))
        return Draft(name, "dense-json", data, [feature], [Input(impute=0.0)], NoCalibrator(), weight)

    outline = Outline(
        "cards", 1, "cards", CHECKED.sha256, CHECKED.feature_hash, CHECKED.features, NoCalibrator(),
        Thresholds("p", 0.12, 0.3), 0.5, Training(0, 1, 1, 1, "r", "0" * 64, {}),
    )  # fmt: skip
    reference = np.abs(np.random.default_rng(1).normal(2, 1, (200, len(CHECKED.features))))
    drafts = [
        member("a", "customer.count_1d", 0.4),
        member("b", "amount_log", 0.3, weight_of_b),
        member("c", "is_night", 2.0),
    ]
    compose_ensemble(folder, outline, drafts, reference)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compose(tmp_path_factory.mktemp("ensemble") / "made")


@pytest.fixture
def ensemble(made: Path) -> Ensemble:
    return Ensemble.load(made, version="1")


@pytest.fixture(scope="module")
def scored(made: Path) -> Collected:
    """What the ensemble alone gives in batches of 64."""
    return run(Ensemble.load(made, version="1"), 64)


def test_columns_pair_with_the_fields_of_a_score() -> None:
    assert publish._ScoreColumns._fields == Score.__struct_fields__


@pytest.mark.kernels
def test_every_transaction_has_a_score_a_contribution_and_if_alerted_an_alert(scored: Collected) -> None:
    sink = scored
    scores, contributions = sink.documents("scores"), sink.documents("contributions")
    alerts = sink.documents("alerts")
    assert len(scores) == len(contributions) == 600
    assert [s["event_id"] for s in scores] == [c["event_id"] for c in contributions]
    assert {a["event_id"] for a in alerts} == {s["event_id"] for s in scores if s["decision"] != "approve"}
    assert alerts
    for document in contributions:
        parts = sum(document["members"]["contribution"])
        assert document["base"] + parts == pytest.approx(document["z"], abs=1e-9)


@pytest.mark.parametrize("sensitive", [False, True])
def test_keys_that_are_not_the_id_of_the_partition_entity_are_found(sensitive: bool) -> None:
    text = CARDS.read_text(encoding="utf-8")
    if sensitive:
        text = text.replace("customer_id: {", "customer_id: {sensitive: true, ")
    checked = parse_spec(text, id_key="k" * 32)
    decode, transactions = Decode(checked), simulated()
    keys: list[Any] = encode_keys(transactions.customer_id)[:6]
    values = encode_values(transactions)[:6]

    def decoded(changes: dict[int, bytes | None]) -> MicroBatch:
        mine = [changes.get(row, key) for row, key in enumerate(keys)]
        span = Span(SourcePartition("transactions", 0), 0, 6, -1)
        batch = MicroBatch(raw("transactions", mine, [b"", *values[1:]], 0), RawRecords.empty("labels"), [span], None)
        decode.process(batch)
        return batch

    # The first record is a dead letter, so places among the transactions are one less than in the batch.
    for changes, places, scattered_from in (
        ({0: b"any"}, [], None), ({3: None, 5: b"other"}, [2, 4], 2), ({}, [], 0), ({1: None}, [0], 0),
    ):  # fmt: skip
        batch = decoded(changes)
        assert batch.events is not None
        assert (batch.wrong_keys, batch.events.scattered_from) == (places, scattered_from)
        assert (batch.output_keys[2] == keys[2]) is not sensitive


def test_without_an_id_or_an_entity_no_key_is_wrong() -> None:
    assert wrong_keys([None, b"k", b"a"], [None, None, "a"]) == []
    assert wrong_keys([None, b"k", b"b"], [None, "k", "a"]) == [2]


def test_summaries_count_exactly_what_was_scored(scored: Collected) -> None:
    sink = scored
    scores, summaries = sink.documents("scores"), sink.documents("score-summaries")
    pane_ms = summaries[0]["pane_ms"]
    by_pane: dict[int, dict[str, int]] = {}
    for score in scores:
        pane = by_pane.setdefault(score["event_time"] // pane_ms * pane_ms, {})
        pane[score["decision"]] = pane.get(score["decision"], 0) + 1
        pane["money"] = pane.get("money", 0) + score["value"]
    counted: dict[int, dict[str, int]] = {}
    for summary in summaries:
        for pane in summary["panes"]:
            into = counted.setdefault(pane["pane"], {})
            for decision, count in pane["decisions"].items():
                if count:
                    into[decision] = into.get(decision, 0) + count
            into["money"] = into.get("money", 0) + sum(pane["money"].values())
            for series in (*pane["features"].values(), *pane["members"].values(), pane["score"]):
                assert sum(series[1::2]) == pane["rows"]
            for cells in pane["left_out"].values():
                assert sum(cells) == pane["rows"]
                assert cells[0] + cells[1] == pane["decisions"]["review"] + pane["decisions"]["block"]
    assert counted == by_pane
    assert [s["first_offset"] for s in summaries[1:]] == [s["next_offset"] for s in summaries[:-1]]


def test_scores_do_not_depend_on_the_batch_size(ensemble: Ensemble) -> None:
    def customer_side(sink: Collected) -> list[list[Any]]:
        kept = [i for i, name in enumerate(CHECKED.features) if not name.startswith("terminal_risk")]
        return [[row.features[i] for i in kept] for row in sink.lineage()]

    one_by_one = customer_side(run(ensemble, 1))
    for batch in (7, 256):
        assert customer_side(run(ensemble, batch)) == one_by_one


def test_bad_records_become_dead_letters_with_their_bytes_and_the_rest_is_scored(ensemble: Ensemble) -> None:
    values = list(inputs()[1])
    values[3], values[40], values[41] = b"{", b"", values[41].replace(b'"amount":', b'"amount":-')
    huge = b'{"x":"' + b"y" * 9_000_000 + b'"}'
    values[100] = huge
    sink = run(ensemble, 64, values=values)
    dead = sink.records["transactions.dlq"]
    letters = {int(dict(h)["source.offset"]): (dict(h), value) for _, _, value, h in dead}
    assert {offset: headers["error.code"] for offset, (headers, _) in letters.items()} == {
        3: b"not_json",
        40: b"empty_value",
        41: b"out_of_range",
        100: b"value_too_large",
    }
    assert letters[3][1] == b"{"
    assert letters[41][0]["error.path"] == b"$.amount"
    assert letters[100][1] == huge[:DEAD_LETTER_HEAD_BYTES]
    assert letters[100][0]["value.length"] == str(len(huge)).encode()
    assert len(sink.documents("scores")) == 600 - 4


def test_a_large_key_or_header_is_not_copied_to_every_output(ensemble: Ensemble) -> None:
    values = list(inputs()[1])[:4]
    sink = run(
        ensemble,
        4,
        values=values,
        headers={1: [("small", b"x"), ("large", b"y" * 70_000), ("after", b"z")]},
        keys={2: b"k" * 70_000, 3: b"k" * 1_000},
    )
    assert len(sink.documents("scores")) == 2
    dead = {
        int(dict(h)["source.offset"]): (key, value, dict(h)) for _, key, value, h in sink.records["transactions.dlq"]
    }
    assert sorted(dead) == [1, 2]
    assert all(headers["error.code"] == b"envelope_too_large" for _, _, headers in dead.values())
    assert [dead[1][1], dead[2][1]] == values[1:3]
    assert dead[1][2]["small"] == b"x"
    assert "large" not in dead[1][2]
    assert dead[1][2]["headers.cut"] == b"2"
    assert dead[2][0] is None
    assert dead[2][2]["key.length"] == b"70000"


@pytest.mark.parametrize("header", [("", b""), ("", None), ("a", b"")])
def test_many_small_headers_are_not_copied_to_every_output(ensemble: Ensemble, header: tuple[str, Any]) -> None:
    """In the log, an empty header takes two bytes: megabytes of them would make each output too large."""
    sink = run(ensemble, 64, headers={1: [header] * 60_000, 2: [header] * 1_000})
    ((_, _, _, found),) = sink.records["transactions.dlq"]
    assert ("error.code", b"envelope_too_large") in found
    assert len(found) < 20_000
    assert [len(headers or ()) for _, _, _, headers in sink.records["scores"][:3]] == [0, 1_000, 0]


def test_a_dead_letter_fits_its_topic(ensemble: Ensemble) -> None:
    values = [b"{" + b"y" * 400_000]
    sink = run(ensemble, 1, values=values, max_dead_letter=300_000)
    ((_, _, value, headers),) = sink.records["transactions.dlq"]
    assert value == values[0][:DEAD_LETTER_HEAD_BYTES]
    assert dict(headers)["value.length"] == b"400001"


def test_a_large_summary_is_several_records_that_count_the_same(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = run(ensemble, 600).documents("score-summaries")
    monkeypatch.setattr(publish, "SUMMARY_MAX_BYTES", 10_000)
    parts = run(ensemble, 600).documents("score-summaries")
    assert len(parts) > 2
    assert [pane for part in parts for pane in part["panes"]] == whole["panes"]
    assert (parts[0]["first_offset"], parts[0]["next_offset"]) == (whole["first_offset"], whole["next_offset"])
    assert all(part["first_offset"] == part["next_offset"] == whole["next_offset"] for part in parts[1:])
    assert sum(part["dead_letters"] for part in parts) == whole["dead_letters"]


def test_without_redis_everything_is_scored_and_says_so(ensemble: Ensemble) -> None:
    class Gone:
        def read(self, keys: Any) -> Any:
            raise StateUnavailable("gone")

    availability = Availability(Metrics())
    availability.enter(State.DEGRADED)
    enrich = Enrich(FeatureEngine(CHECKED), Gone(), availability, InFlight())
    sink = run(ensemble, 64, enrich=enrich)
    scores = sink.documents("scores")
    assert len(scores) == 600
    assert all(s["degraded"] == ["features_unavailable"] for s in scores)
    row = sink.lineage()[0]
    place = CHECKED.features.index("customer.count_1h")
    assert row.feature_status[place] == 2
    assert row.features[place] is None
    assert row.features[CHECKED.features.index("amount_log")] is not None
    assert row.applied_offsets == []
    # Neither missing features nor what the members made of them are evidence of drift; fields of the transaction are.
    panes = [pane for summary in sink.documents("score-summaries") for pane in summary["panes"]]
    assert all(pane["incomplete"] == pane["rows"] for pane in panes)
    assert all(pane["features"]["customer.count_1h"] == pane["score"] == [] for pane in panes)
    assert sum(sum(pane["features"]["amount_log"][1::2]) for pane in panes) == 600


class Broken:
    def predict(self, inputs: Any) -> Any:
        raise RuntimeError("out of luck")


def break_b(ensemble: Ensemble) -> None:
    loaded = ensemble._members[1]
    ensemble._members = [*ensemble._members]
    ensemble._members[1] = type(loaded)(loaded.name, Broken(), loaded.preprocess)


def test_a_failing_member_is_named_and_weighs_nothing(ensemble: Ensemble) -> None:
    break_b(ensemble)
    sink = run(ensemble, 64)
    score, contribution = sink.documents("scores")[5], sink.documents("contributions")[5]
    assert score["degraded"] == ["member:b"]
    assert score["coverage"] == pytest.approx(2 / 3)
    assert contribution["degraded"] == ["member:b"]
    assert contribution["members"]["status"] == ["ok", "missing", "ok"]
    assert contribution["members"]["weight"] == pytest.approx([0.5, 0, 0.5])


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_summaries_count_the_scores_that_lack_a_member_whatever_its_weight(tmp_path: Path, weight: float) -> None:
    ensemble = Ensemble.load(compose(tmp_path / "made", weight), version="1")
    break_b(ensemble)
    sink = run(ensemble, 64)
    assert all(score["degraded"] == ["member:b"] for score in sink.documents("scores"))
    panes = [pane for summary in sink.documents("score-summaries") for pane in summary["panes"]]
    assert sum(pane["degraded"] for pane in panes) == len(sink.documents("scores"))


def test_sensitive_fields_are_in_no_output(scored: Collected) -> None:
    cards = set(simulated().card_number.tolist())
    sink = scored
    values = [value or b"" for topic in sink.records if topic != "lineage" for _, _, value, _ in sink.records[topic]]
    everything = b"".join([*values, repr(sink.lineage()).encode()])
    assert not [card for card in cards if card.encode() in everything]


def hashed(*fields: str, policy: str = "") -> CheckedSpec:
    """The spec with sensitive `fields` and another policy."""
    text = CARDS.read_text(encoding="utf-8")
    for name in fields:
        text = text.replace(f"{name}: {{", f"{name}: {{sensitive: true, ")
    return parse_spec(text.replace("quorum: 0.5}", f"quorum: 0.5{policy}}}"), id_key="a secret of tests, 32 characters")


def everything_in(sink: Collected) -> bytes:
    """Keys, values and headers of all records."""
    records = [record for topic in sink.records for record in sink.records[topic]]
    values = [value or b"" for topic in sink.records if topic != "lineage" for _, _, value, _ in sink.records[topic]]
    keys = [key or b"" for _, key, _, _ in records]
    return b"\n".join([*keys, *values, repr(sink.lineage()).encode(), repr([h for *_, h in records]).encode()])


def test_ids_of_sensitive_entities_are_in_no_output_and_no_row(ensemble: Ensemble) -> None:
    transactions, stores = simulated(), [MemoryRowStore(), MemoryRowStore()]
    customers, terminals = set(transactions.customer_id.tolist()), set(transactions.terminal_id.tolist())
    plain = run(ensemble, 64, store=stores[0])
    assert any(i.encode() in everything_in(plain) for i in customers)
    sink = run(ensemble, 64, store=stores[1], checked=hashed("customer_id", "terminal_id"))
    found = everything_in(sink) + b"\n".join(stores[1].rows())
    assert not [i for i in customers | terminals if i.encode() in found]
    # One hash per id, so features, scores and the partitions of outputs do not change.
    assert len(stores[0].rows()) == len(stores[1].rows())
    assert [row.features for row in sink.lineage()] == [row.features for row in plain.lineage()]
    for topic in ("scores", "alerts", "contributions"):
        ours, theirs = sink.records[topic], plain.records[topic]
        assert [r[0] for r in ours] == [r[0] for r in theirs]
        assert (
            len({r[1] for r in ours})
            == len({r[1] for r in theirs})
            == len({(a[1], b[1]) for a, b in zip(ours, theirs, strict=True)})
        )


def test_a_list_of_sensitive_ids_applies(ensemble: Ensemble) -> None:
    customer = simulated().customer_id.tolist()[5]
    policy = f', lists: [{{name: vip, entity: customer, decision: block, ids: ["{customer}"]}}]'
    by_rule = [
        [s["rule"] for s in run(ensemble, 64, checked=hashed(*f, policy=policy)).documents("scores")]
        for f in (("customer_id",), ())
    ]
    assert by_rule[0] == by_rule[1]
    assert by_rule[0][5] == "vip"


def with_other_weights(ensemble: Ensemble) -> Ensemble:
    """The same members with other weights and thresholds."""
    manifest = ensemble.manifest
    members = [
        msgspec.structs.replace(member, weight=weight)
        for member, weight in zip(manifest.members, (3.0, 1.0, 0.5), strict=True)
    ]
    thresholds = msgspec.structs.replace(manifest.thresholds, review=0.2, block=0.4)
    other = msgspec.structs.replace(manifest, members=members, thresholds=thresholds)
    return Ensemble(other, [loaded.member for loaded in ensemble._members], version="9")


def test_versions_side_by_side_decide_each_for_their_own_and_say_what_the_other_would(
    ensemble: Ensemble, scored: Collected
) -> None:
    other = with_other_weights(ensemble)
    lineup = Lineup((ensemble, other), Split(0.3, "cards:9"), control_offset=7)
    assert len(lineup.pool) == 3  # the members are the same: each is called once
    both, first, second = run(lineup, 64), scored, run(other, 64)
    scores, contributions = both.documents("scores"), both.documents("contributions")
    assert [s["event_id"] for s in scores] == [s["event_id"] for s in first.documents("scores")]
    assert [s["event_id"] for s in scores] == [c["event_id"] for c in contributions]
    arms = {s["arm"] for s in scores}
    assert arms == {"champion", "canary"}
    alone = {"champion": (first, second), "canary": (second, first)}
    published = {arm: [sink.documents("contributions") for sink in sinks] for arm, sinks in alone.items()}
    for row, (score, contribution, lineage) in enumerate(zip(scores, contributions, both.lineage(), strict=True)):
        mine, theirs = (documents[row] for documents in published[score["arm"]])
        assert contribution["version"] == lineage.version == mine["version"]
        assert (lineage.event_id, lineage.arm, lineage.control_offset) == (score["event_id"], score["arm"], 7)
        assert contribution["members"] == mine["members"]
        assert (contribution["z"], score["score"]) == (mine["z"], mine["score"])
        (alternative,) = contribution["alternatives"]
        assert (alternative["version"], alternative["z"]) == (theirs["version"], theirs["z"])


# In batches of one, either the canary or the champion decides nothing.
@pytest.mark.kernels
@pytest.mark.parametrize("batch", [64, 1])
def test_summaries_of_two_versions_cover_each_row_once(ensemble: Ensemble, batch: int) -> None:
    other = with_other_weights(ensemble)
    sink = run(Lineup((ensemble, other), Split(0.3, "cards:9"), control_offset=7), batch)
    scores, summaries = sink.documents("scores"), sink.documents("score-summaries")
    decided = {s["event_id"]: s["decision"] != "approve" for s in scores}
    other_says = {c["event_id"]: c["alternatives"][0]["decision"] != "approve" for c in sink.documents("contributions")}
    for arm, version in (("champion", ensemble.version), ("canary", "9")):
        mine = [s for s in summaries if s["arm"] == arm]
        assert {s["version"] for s in mine} == {version}
        assert {s["control_offset"] for s in mine} == {7}
        events = [s["event_id"] for s in scores if s["arm"] == arm]
        assert sum(pane["rows"] for s in mine for pane in s["panes"]) == len(events)
        cells = np.sum([cell for s in mine for pane in s["panes"] for cell in pane["against"].values()], axis=0)
        pairs = [(decided[event], other_says[event]) for event in events]
        assert cells.tolist() == [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]
    champions = [s for s in summaries if s["arm"] == "champion"]
    assert [s["first_offset"] for s in champions[1:]] == [s["next_offset"] for s in champions[:-1]]


def cards_of(sink: Collected, version: str, other: str) -> list[CardAlerts]:
    summaries = [msgspec.json.decode(value, type=ScoreSummary) for value in sink.values("score-summaries")]
    return [s.cards[other] for s in summaries if s.version == version and other in s.cards]


def first_alerts(found: list[CardAlerts]) -> list[tuple[int | None, int | None]]:
    """First alerts by both versions, of all cards, sorted."""
    cards = AlertedCards(10**15)
    for number, each in enumerate(found):
        cards.add(0, each, number)
    return sorted(cards._partitions[0].waiting.values(), key=str)


def test_summaries_list_the_alerted_cards_of_a_version_on_probation(ensemble: Ensemble) -> None:
    other = with_other_weights(ensemble)
    sink = run(Lineup((other, ensemble), control_offset=7, last_good=1), 64)
    expected: dict[str, list[int | None]] = {}
    transactions = simulated()
    customers = dict(zip(transactions.event_id.tolist(), transactions.customer_id.tolist(), strict=True))
    scores, contributions = sink.documents("scores"), sink.documents("contributions")
    square = [0, 0, 0, 0]
    for score, contribution in zip(scores, contributions, strict=True):
        alerts = score["decision"] != "approve", contribution["alternatives"][0]["decision"] != "approve"
        square[2 * (not alerts[0]) + (not alerts[1])] += not score["duplicate"]
        first = expected.setdefault(customers[score["event_id"]], [None, None])
        for k, alert in enumerate(alerts):
            if alert and not score["duplicate"]:
                first[k] = min(first[k] or score["event_time"], score["event_time"])
    found = cards_of(sink, "9", ensemble.version)
    assert first_alerts(found) == sorted((tuple(e) for e in expected.values() if e != [None, None]), key=str)
    assert len(first_alerts(found)) > 20
    assert sum(each.rows for each in found) == sum(not score["duplicate"] for score in scores)
    assert sum(each.rows + each.excluded for each in found) == len(scores)
    assert [sum(column) for column in zip(*(each.against for each in found), strict=True)] == square
    # A card has the same hash in every batch, and the hash differs with the key and the pair.
    names = {card for each in found for card in each.card}
    assert len(names) == len(first_alerts(found))
    keyed = run(Lineup((other, ensemble), last_good=1), 64, checked=KEYED)
    assert not names & {card for each in cards_of(keyed, "9", ensemble.version) for card in each.card}
    back = run(Lineup((other, other, ensemble), last_good=2), 64)
    assert {card for each in cards_of(back, "9", ensemble.version) for card in each.card} == names
    alone = run(Lineup((other, ensemble), control_offset=7), 64)
    assert cards_of(alone, "9", ensemble.version) == []


def test_a_withdrawn_version_in_shadow_changes_no_score_and_its_cards_are_those_of_its_probation(
    ensemble: Ensemble,
) -> None:
    other = with_other_weights(ensemble)
    alone, sink = (
        run(Lineup((ensemble,), control_offset=7), 64),
        run(Lineup((ensemble, other), control_offset=7, withdrawn=1), 64),
    )
    assert sink.values("scores") == alone.values("scores")
    for both, one in zip(sink.documents("contributions"), alone.documents("contributions"), strict=True):
        assert [each["version"] for each in both.pop("alternatives")] == ["9"]
        assert both == one
    found = cards_of(sink, ensemble.version, "9")
    probation = cards_of(run(Lineup((other, ensemble), last_good=1), 64), "9", ensemble.version)
    # The versions have changed places; hashes, events and values are the same.
    for one, two in zip(found, probation, strict=True):
        square = [one.against[place] for place in (0, 2, 1, 3)]
        assert msgspec.structs.replace(one, this=one.other, other=one.this, against=square) == two
    assert sum(len(each.event) for each in found) == sum(len(each.card) for each in found) > 20
    assert all(not json.loads(value)["differences"] for value in sink.values("score-summaries"))


def test_alerted_cards_have_their_first_alert(ensemble: Ensemble) -> None:
    other = with_other_weights(ensemble)
    sink = run(Lineup((ensemble, other), control_offset=7, last_good=1), 64)
    alert = {c["event_id"]: (c["score"] >= 0.12, c["alternatives"][0]["decision"] != "approve")
             for c in sink.documents("contributions")}  # fmt: skip
    scores = {s["event_id"]: s for s in sink.documents("scores")}
    found = cards_of(sink, ensemble.version, "9")
    events = [
        (event, value, ours, theirs)
        for each in found
        for event, value, ours, theirs in zip(each.event, each.value, each.this, each.other, strict=True)
    ]
    assert sum((ours is None) != (theirs is None) for _, _, ours, theirs in events) > 10
    for event, value, ours, theirs in events:
        at = min(time for time in (ours, theirs) if time is not None)
        assert alert[event] == (ours == at, theirs == at)
        assert (scores[event]["event_time"], scores[event]["value"]) == (at, value)


def test_both_arms_of_a_canary_list_their_cards_under_the_same_hashes(ensemble: Ensemble) -> None:
    other = with_other_weights(ensemble)
    sink = run(Lineup((ensemble, other), Split(0.3, "cards:9"), control_offset=7), 64)
    arms = cards_of(sink, ensemble.version, "9"), cards_of(sink, "9", ensemble.version)
    names = [{card for each in arm for card in each.card} for arm in arms]
    assert names[0] and names[1] and not names[0] & names[1]
    whole = run(Lineup((other, ensemble), last_good=1), 64)
    assert names[0] | names[1] == {card for each in cards_of(whole, "9", ensemble.version) for card in each.card}
    scores = sink.documents("scores")
    for arm, found in zip(("champion", "canary"), arms, strict=True):
        assert sum(each.rows + each.excluded for each in found) == sum(s["arm"] == arm for s in scores)


def test_rows_without_a_member_that_failed_or_that_only_one_version_may_call_are_no_evidence() -> None:
    whole = np.full((4, 2), 0.1)
    partly = np.array([[0.1, 0.2], [np.nan, 0.2], [0.1, 0.2], [0.1, 0.2]])
    names = ["one", "two"]

    def rows(
        failures: dict[str, str],
        others: dict[str, str],
        keys: list[str],
        score: float = 0.1,
    ) -> list[bool]:
        """The rows that count for a version with the members `keys`, compared with one that has the members a and b."""
        results = [
            SimpleNamespace(
                scored=SimpleNamespace(
                    member_scores=partly if failed else whole, score=np.full(4, one), failures=failed
                )
            )
            for failed, one in ((failures, score), (others, 0.1))
        ]
        versions = [SimpleNamespace(member_names=names, member_keys=each) for each in (keys, ["a", "b"])]
        batch: Any = SimpleNamespace(
            enriched=SimpleNamespace(duplicate=np.array([False, False, False, True]), degraded=[]),
            decided=SimpleNamespace(rules=None, results=results, lineup=SimpleNamespace(versions=versions)),
        )
        found: list[bool] = evidence_rows(batch, ["a", "b", None, "d"], 0, 1).tolist()
        assert evidence_rows(batch, ["a", "b", None, "d"], 1, 0).tolist() == found
        return found

    same, updated, off = ["a", "b"], ["new", "b"], {"one": DISABLED}
    assert rows({"one": "slow"}, {}, same) == [1, 0, 0, 0]
    assert rows({}, {}, updated) == [1, 1, 0, 0]
    assert rows({}, {}, updated, np.nan) == [0, 0, 0, 0]
    # The same member is missing from both: they are compared as they decide.
    assert rows(off, off, same) == rows({"two": DISABLED}, {"two": DISABLED}, updated) == [1, 1, 0, 0]
    # The member that changed is missing: its effect would not be seen, or that of the other one's absence would.
    for mine, theirs in ((off, {}), ({}, off), (off, off)):
        assert rows(mine, theirs, updated) == [0, 0, 0, 0]


def test_rows_without_features_or_by_a_list_are_no_evidence(ensemble: Ensemble) -> None:
    other = with_other_weights(ensemble)
    lineup = Lineup((other, ensemble), last_good=1)

    class Degraded(EnrichInProcess):
        def process(self, batch: MicroBatch) -> None:
            super().process(batch)
            assert batch.enriched is not None
            batch.enriched.degraded = ["redis_down"]

    engine = FeatureEngine(CHECKED)
    sink = run(lineup, 64, enrich=Degraded(engine, MemoryRowStore()))
    assert {(each.rows, len(each.card)) for each in cards_of(sink, "9", ensemble.version)} == {(0, 0)}
    listed = sorted(set(simulated().customer_id.tolist()))[::2]
    ids = ", ".join(f'"{i}"' for i in listed)
    lists = f"[{{name: known, entity: customer, decision: block, ids: [{ids}]}}]"
    policy = f"{{version: p, review: 0.5, block: 0.9, fallback: approve, lists: {lists}}}"
    half = run(lineup, 64, checked=with_policy(policy))
    all_cards = {c for each in cards_of(run(lineup, 64), "9", ensemble.version) for c in each.card}
    some = {c for each in cards_of(half, "9", ensemble.version) for c in each.card}
    assert some < all_cards and some


def test_a_summary_that_is_too_large_is_split_into_records_that_add_up(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    lineup = Lineup((with_other_weights(ensemble), ensemble), last_good=1)
    whole = run(lineup, 500)
    monkeypatch.setattr("stream_scorer.pipeline.publish.SUMMARY_MAX_BYTES", 1_000)
    parts = run(lineup, 500)
    assert max(map(len, parts.values("score-summaries"))) < max(map(len, whole.values("score-summaries")))
    one, many = (cards_of(sink, "9", ensemble.version) for sink in (whole, parts))
    assert len(many) > len(one)
    assert first_alerts(one) == first_alerts(many)
    split = [msgspec.json.decode(value, type=ScoreSummary) for value in parts.values("score-summaries")]
    last = [max(i for i, s in enumerate(split) if s.cards and s.next_offset == end) for end in (500, 600)]
    assert [i for i, s in enumerate(split) if s.cards and s.newest is not None] == last
    for name in ("rows", "excluded"):
        assert sum(getattr(each, name) for each in one) == sum(getattr(each, name) for each in many)


@pytest.mark.parametrize("probation", [True, False])
def test_an_alert_has_the_compared_versions_that_approve_it(ensemble: Ensemble, probation: bool) -> None:
    other = with_other_weights(ensemble)
    lineup = Lineup((ensemble, other), last_good=1) if probation else Lineup((ensemble, other), Split(0.5, "s"))
    sink = run(lineup, 64)
    approved = {
        c["event_id"]: [a["version"] for a in c["alternatives"] if a["decision"] == "approve"]
        for c in sink.documents("contributions")
    }
    alerts = sink.documents("alerts")
    assert [alert["disagreement"] for alert in alerts] == [approved[alert["event_id"]] for alert in alerts]
    assert {tuple(alert["disagreement"]) for alert in alerts if alert["version"] == ensemble.version} == {(), ("9",)}
    shadow = run(Lineup((ensemble, other)), 64).documents("alerts")
    assert shadow and not any(alert["disagreement"] for alert in shadow)


def differences_of(sink: Collected, version: str, other: str) -> list[PairDifferences]:
    summaries = [msgspec.json.decode(value, type=ScoreSummary) for value in sink.values("score-summaries")]
    return [s.differences[other] for s in summaries if s.version == version and other in s.differences]


@pytest.mark.parametrize("probation", [True, False])
def test_summaries_compare_the_members_of_a_version_under_test(ensemble: Ensemble, probation: bool) -> None:
    other = with_other_weights(ensemble)
    lineup = Lineup((other, ensemble), last_good=1) if probation else Lineup((ensemble, other), Split(0.5, "s"))
    sink = run(lineup, 600)
    (found,) = differences_of(sink, "9", ensemble.version)
    contributions = [c for c in sink.documents("contributions") if c["version"] == "9"]
    assert found.rows == len(contributions) - sum(
        s["duplicate"] for s in sink.documents("scores") if s["version"] == "9"
    )
    # The weights of two members changed; their scores did not.
    assert {name: (bool(m.output), bool(m.weight)) for name, m in found.members.items()} != {}
    assert not any(m.output for m in found.members.values()) and all(m.weight for m in found.members.values())
    assert differences_of(sink, ensemble.version, "9") == []
    parts = differences_of(run(lineup, 64), "9", ensemble.version)
    assert len(parts) > 5 and sum(each.rows for each in parts) == found.rows
    for name, member in found.members.items():
        assert member.weight == np.sum([each.members[name].weight for each in parts], axis=0).tolist()


def test_compared_members_are_split_if_a_summary_is_too_large(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    lineup = Lineup((with_other_weights(ensemble), ensemble), last_good=1)
    whole = run(lineup, 600)
    monkeypatch.setattr("stream_scorer.pipeline.publish.SUMMARY_MAX_BYTES", 10)
    one, many = (differences_of(sink, "9", ensemble.version) for sink in (whole, run(lineup, 600)))
    assert len(one) == 1 and len(many) == len(one[0].members) > 1
    assert sum(each.rows for each in many) == one[0].rows
    assert {name: m for each in many for name, m in each.members.items()} == one[0].members


def test_a_shadow_changes_nothing_but_the_alternatives(ensemble: Ensemble, scored: Collected) -> None:
    other = with_other_weights(ensemble)
    alone, beside = scored, run(Lineup((ensemble, other)), 64)
    assert beside.documents("scores") == alone.documents("scores")
    for one, two in zip(alone.documents("contributions"), beside.documents("contributions"), strict=True):
        assert two.pop("alternatives")[0]["version"] == "9"
        assert "alternatives" not in one
        assert one == two


def with_policy(policy: str, folder: Path = Path()) -> CheckedSpec:
    """The cards spec with a policy of its own."""
    text = (Path(__file__).resolve().parents[2] / "stream_scorer" / "simulate" / "cards.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("policy:"))
    return parse_spec(text.replace(line, f"policy: {policy}"), folder)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("{version: p1, review: 0.3, block: 0.8, quorum: 0.4, fallback: block}", ""),
        ("{version: p2, review: 0.2, block: 0.8, quorum: 0.4}", "review 0.3 instead of 0.2"),
        ("{version: p1, review: 0.3, block: 0.9, quorum: 0.6}", "block 0.8 instead of 0.9, quorum 0.4 instead of 0.6"),
        ("{version: fit, review: 0.2, block: 0.9, quorum: 0.4}", ""),  # its thresholds were fitted
    ],
)
def test_thresholds_of_the_spec_that_a_version_does_not_use_are_found(
    policy: str, expected: str, ensemble: Ensemble
) -> None:
    own = Thresholds("fit-fitted" if "fit" in policy else "p1", 0.3, 0.8)
    manifest = msgspec.structs.replace(ensemble.manifest, thresholds=own, quorum=0.4)
    assert unused_policy(with_policy(policy).spec, manifest) == expected


@pytest.mark.parametrize(
    ("review", "block", "turned"),
    [(0.2, 0.8, True), (0.05, 0.8, False), (0.5, 0.9, False), (0.3, 0.7, True), (0.3, 0.4, False)],
)
def test_segments_that_become_laxer_by_fitted_thresholds_are_named(
    review: float, block: float, turned: bool, ensemble: Ensemble
) -> None:
    manifest = msgspec.structs.replace(ensemble.manifest, thresholds=Thresholds("p1-fitted", 0.1, 0.6))
    segment = f"{{name: web, where: {{channel: {{in: [online]}}}}, review: {review}, block: {block}}}"
    spec = with_policy(f"{{version: p1, review: 0.3, block: 0.8, segments: [{segment}]}}").spec
    assert turned_segments(spec, manifest) == ["web"] * turned


def test_segments_have_thresholds_and_lists_decide_before_them(
    ensemble: Ensemble, scored: Collected, tmp_path: Path
) -> None:
    transactions = simulated()
    customers, channels = transactions.customer_id.tolist(), inputs()[1]
    vip, gone = customers[0], next(c for c in customers if c != customers[0])
    (tmp_path / "vip.txt").write_text(f"{vip}\n\n")
    checked = with_policy(
        f"""
  version: v9
  review: 0.3
  block: 0.8
  segments:
    - {{name: web, where: {{channel: {{in: [online]}}}}, review: 0.0, block: 0.5}}
    - {{name: large, where: {{amount: {{min: 5000}}}}, review: 1.0, block: 1.0}}
  lists:
    - {{name: vip, entity: customer, decision: approve, file: vip.txt}}
    - {{name: stolen, entity: customer, decision: block, ids: [{gone}, {vip}]}}
""",
        tmp_path,
    )
    assert checked.feature_hash == CHECKED.feature_hash
    own = ensemble.manifest.thresholds
    plain, sink = scored, run(ensemble, 64, checked=checked)
    seen = set()
    rows = zip(
        sink.documents("scores"), sink.lineage(), plain.documents("scores"), customers, channels,
        strict=True,
    )  # fmt: skip
    for score, lineage, before, customer, value in rows:
        fields = json.loads(value)
        rule = {vip: "vip", gone: "stolen"}.get(customer)
        thresholds: tuple[float, float] | None = None
        if fields["channel"] == "online":
            rule, thresholds = rule or "web", (0.0, 0.5)
        elif fields["amount"] >= 5_000:
            rule, thresholds = rule or "large", (1.0, 1.0)
        review, block = thresholds or (own.review, own.block)
        by_score = "block" if score["score"] >= block else "review" if score["score"] >= review else "approve"
        wanted = {"vip": "approve", "stolen": "block"}.get(rule or "", by_score)
        assert (score["rule"], score["decision"], score["score"]) == (rule, wanted, before["score"])
        assert score["decision_source"] == ("list" if rule in ("vip", "stolen") else "model")
        assert score["policy_version"] == ("v9" if rule else own.policy_version)
        assert lineage.thresholds == (None if thresholds is None else SegmentThresholds(*thresholds))
        seen.add(rule)
    assert seen == {None, "web", "large", "vip", "stolen"}
    alerts = sink.documents("alerts")
    assert {a["event_id"] for a in alerts} == {
        s["event_id"] for s in sink.documents("scores") if s["decision"] != "approve"
    }
    assert {a["rule"] for a in alerts} >= {"stolen", "web"}
    for summary in sink.documents("score-summaries"):
        for pane in summary["panes"]:
            for cells in pane["left_out"].values():
                assert cells[0] + cells[1] == pane["decisions"]["review"] + pane["decisions"]["block"]


def test_a_list_decides_even_without_a_score(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    customer = simulated().customer_id[0]
    checked = with_policy(
        f"{{version: v, review: 0.3, block: 0.8, fallback: review, lists: [{{name: bad, entity: customer, "
        f"decision: block, ids: [{customer}]}}]}}"
    )
    monkeypatch.setattr(ensemble, "predict_member", lambda _index, features: MemberOutput.none(len(features), "gone"))
    first = run(ensemble, 64, checked=checked).documents("scores")
    assert (first[0]["decision"], first[0]["decision_source"], first[0]["score"]) == ("block", "list", None)
    assert {s["decision_source"] for s in first} == {"list", "fallback"}


@pytest.mark.parametrize(("fallback", "cell"), [("review", 0), ("approve", 3)])
def test_what_the_fallback_decides_no_member_moves(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch, fallback: str, cell: int
) -> None:
    """Two of three members are missing: the third one's score lacks the quorum."""
    predict = ensemble.predict_member
    monkeypatch.setattr(
        ensemble,
        "predict_member",
        lambda index, features: MemberOutput.none(len(features), "gone") if index else predict(index, features),
    )
    sink = run(ensemble, 64, checked=with_policy(f"{{version: v, review: 0.3, block: 0.8, fallback: {fallback}}}"))
    assert {s["decision_source"] for s in sink.documents("scores")} == {"fallback"}
    for summary in sink.documents("score-summaries"):
        for pane in summary["panes"]:
            for cells in pane["left_out"].values():
                assert cells == [pane["rows"] if place == cell else 0 for place in range(4)]


@pytest.mark.kernels
def test_the_highest_alerts_of_a_batch_name_their_members_features(made: Path, scored: Collected) -> None:
    ensemble = Ensemble.load(made, version="1", explain=True)
    assert all(not r["features"] for a in scored.documents("alerts") for r in a["reasons"])
    sink = run(ensemble, 64, max_explained=2)
    lineages = {row.event_id: row for row in sink.lineage()}
    looked = [a for a in sink.documents("alerts") if any(reason["features"] for reason in a["reasons"])]
    assert 10 <= len(looked) <= 2 * 10
    for alert in looked:
        features = dict(zip(CHECKED.features, lineages[alert["event_id"]].features, strict=True))
        for reason in alert["reasons"]:
            (named,) = reason["features"]
            assert named["feature"] == {"a": "customer.count_1d", "b": "amount_log", "c": "is_night"}[reason["member"]]
            assert named["value"] == features[named["feature"]]
            weight = {"a": 0.4, "b": 0.3, "c": 2.0}[reason["member"]]
            place = CHECKED.features.index(named["feature"])
            middle = np.mean([row[place] for row in ensemble.manifest.self_test.features])
            assert named["contribution"] == pytest.approx(weight * ((named["value"] or 0.0) - middle))
    for low in range(0, 600, 64):  # of each batch those with the highest scores
        batch = {c["event_id"] for c in sink.documents("contributions")[low : low + 64]}
        alerts = [a for a in sink.documents("alerts") if a["event_id"] in batch]
        explained = {a["event_id"] for a in alerts if any(reason["features"] for reason in a["reasons"])}
        wanted = sorted(alerts, key=lambda a: -a["score"])[:2]
        assert {a["score"] for a in alerts if a["event_id"] in explained} == {a["score"] for a in wanted}


def test_an_explanation_that_fails_costs_no_score(
    scored: Collected, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(Explainer, "attribute", fail)
    assert run(Ensemble.load(made, version="1", explain=True), 64, max_explained=5).records == scored.records


def sampling_spec(share: float, key: str = "") -> CheckedSpec:
    text = CARDS.read_text(encoding="utf-8").replace("{pane: 1h}", f"{{pane: 1h, review_sample: {share}}}")
    return parse_spec(text, id_key=key)


def drawn(sink: Collected) -> list[str]:
    return [s["event_id"] for s in sink.documents("scores") if "review_propensity" in s]


def test_the_review_sample_is_drawn_from_approved_transactions_in_any_batching(ensemble: Ensemble) -> None:
    whole, single = (run(ensemble, batch, checked=sampling_spec(0.3)) for batch in (600, 7))
    by_id = {s["event_id"]: s for s in whole.documents("scores")}
    sample = drawn(whole)
    assert 20 < len(sample) < 80
    assert {by_id[i]["decision"] for i in sample} == {"approve"}
    assert {by_id[i]["review_propensity"] for i in sample} == {0.3}
    assert not any(by_id[i]["duplicate"] for i in sample)
    assert drawn(single) == sample
    records = whole.documents("review-sample")
    assert [r["event_id"] for r in records] == sample
    assert records[0]["reasons"]
    panes = [pane for summary in single.documents("score-summaries") for pane in summary["panes"]]
    assert sum(pane["sampled"] for pane in panes) == len(sample)


def test_the_review_sample_changes_no_alert_and_depends_on_the_key(ensemble: Ensemble) -> None:
    none, some, keyed = (run(ensemble, 600, checked=sampling_spec(*how)) for how in ((0,), (0.3,), (0.3, "k" * 32)))
    assert none.values("alerts") == some.values("alerts")
    assert not drawn(none) and "review-sample" not in none.records
    assert set(drawn(some)) != set(drawn(keyed))
    everything = run(ensemble, 600, checked=sampling_spec(1))
    approved = [s for s in everything.documents("scores") if s["decision"] == "approve" and not s["duplicate"]]
    assert drawn(everything) == [s["event_id"] for s in approved]


def test_card_groups_add_up_to_the_decisions(scored: Collected) -> None:
    sink = scored
    scores = sink.documents("scores")
    groups = {customer: set() for customer in {key for _, key, _, _ in sink.records["scores"]}}
    for (_, key, _, _), score in zip(sink.records["scores"], scores, strict=True):
        groups[key].add(score["card_group"])
    assert {len(found) for found in groups.values()} == {1}
    assert len({group for found in groups.values() for group in found}) > 15
    counted: dict[tuple[str, int], int] = {}
    for summary in sink.documents("score-summaries"):
        for pane in summary["panes"]:
            for decision, sparse in pane["groups"].items():
                for place in range(0, len(sparse), 2):
                    cell = (decision, sparse[place])
                    counted[cell] = counted.get(cell, 0) + sparse[place + 1]
    expected: dict[tuple[str, int], int] = {}
    for score in scores:
        if not score["duplicate"]:
            cell = (score["decision"], score["card_group"])
            expected[cell] = expected.get(cell, 0) + 1
    assert counted == expected


@pytest.mark.parametrize(("link", "unit"), [("logit", "log-odds"), ("probability", "probability")])
def test_an_alert_names_the_scale_of_its_contributions(ensemble: Ensemble, link: Any, unit: str) -> None:
    manifest = msgspec.structs.replace(ensemble.manifest, link=link)
    members = [loaded.member for loaded in ensemble._members]
    alerts = run(Ensemble(manifest, members, version="1"), 64).documents("alerts")
    assert alerts
    assert all(f" the {unit} by " in reason["text"] for alert in alerts for reason in alert["reasons"])


def test_the_breaker_of_a_member_that_left_play_is_no_longer_open(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions with other members of the same names: those of the second are called ``a@2`` and so on."""
    good, bad = Ensemble.load(made, version="1"), Ensemble.load(made, version="2")
    bad.member_keys = [f"{key[:-1]}0" if key[-1] != "0" else f"{key[:-1]}1" for key in bad.member_keys]
    monkeypatch.setattr(bad, "predict_member", lambda _index, features: MemberOutput.none(len(features), "gone"))
    lineups, metrics = [Lineup((good, bad))], Metrics()
    scoring = Scoring(lambda: lineups[-1], CHECKED, metrics, Bulkhead(FixedClock(), budget_s=10.0))

    def score() -> dict[str, float | None]:
        score_four(scoring)
        read = metrics.registry.get_sample_value
        return {name: read("stream_scorer_member_breaker", {"member": name}) for name in ("a", "a@2")}

    def failures(kind: str) -> float | None:
        return metrics.registry.get_sample_value(f"stream_scorer_member_{kind}_total", {"member": "a@2"})

    for _ in range(FAILURES):
        found = score()
    assert found == {"a": BreakerState.CLOSED, "a@2": BreakerState.OPEN}
    # Failures of a shadow affect no decision: those of a canary do.
    assert (failures("failures"), failures("shadow_failures")) == (None, FAILURES)
    lineups.append(Lineup((good, bad), Split(0.0, "s")))
    score()
    assert (failures("failures"), failures("shadow_failures")) == (1, FAILURES)
    lineups.append(Lineup.of(good))
    assert score() == {"a": BreakerState.CLOSED, "a@2": BreakerState.CLOSED}


def test_the_age_of_a_version_is_that_of_its_members(made: Path) -> None:
    ensemble, metrics = Ensemble.load(made, version="1"), Metrics()
    labels = {"ensemble": ensemble.name, "version": "1"}
    found = []
    for until in (msgspec.UNSET, 1_001, None):  # trained here, composed with `trained_until`, composed without
        training = msgspec.structs.replace(ensemble.manifest.training, last_event_time=1, trained_until=until)
        ensemble.manifest = msgspec.structs.replace(ensemble.manifest, training=training)
        score_four(Scoring(lambda: Lineup.of(ensemble), CHECKED, metrics, Bulkhead(FixedClock(), budget_s=10.0)))
        found.append(metrics.registry.get_sample_value("stream_scorer_ensemble_age_seconds", labels))
    assert found[0] - found[1] == pytest.approx(1.0)
    assert math.isnan(found[2])


def score_four(scoring: Scoring) -> None:
    """Score four transactions."""
    values = list(inputs()[1])[:4]
    span = Span(SourcePartition("transactions", 0), 0, 4, -1)
    batch = MicroBatch(raw("transactions", [b"k"] * 4, values, 0), RawRecords.empty("labels"), [span], None)
    for stage in (Decode(CHECKED), EnrichInProcess(FeatureEngine(CHECKED), MemoryRowStore()), scoring):
        stage.process(batch)
