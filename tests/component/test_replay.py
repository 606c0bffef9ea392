"""Replay: one order whatever the chunks, one result whatever the batches, honest figures, readable differences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Input, NoCalibrator, Platt, Thresholds, Training
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import MISSING, Contribution, LineageRow, Score
from stream_scorer.replay.compare import Comparison, ServedRecord
from stream_scorer.replay.job import replay
from stream_scorer.replay.order import Extractors, Run, Stream, in_order
from stream_scorer.replay.pieces import Piece, Range, cut, with_trims
from stream_scorer.replay.quality import EffectiveLabels, ScoredRows, evaluate
from stream_scorer.replay.report import ReplayReport
from stream_scorer.replay.run import Replay
from stream_scorer.replay.skew import SkewReport, measure_skew, recompute_features
from stream_scorer.replay.sources import ReplayInput, from_files
from stream_scorer.serde.canonical import canonical, first_difference
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec import CheckedSpec, parse_spec
from stream_scorer.state.rows import MemoryRowStore
from tests.support.specs import entities_spec

SPEC_TEXT = entities_spec("""views:
  - {name: who, entity: who, windows: [20ms, 90ms], aggregates: [count, mean]}
  - {name: risk, entity: where, windows: [30ms, 60ms], delay: 5ms, aggregates: [count, label_rate]}
derived: [{name: ratio, function: ratio, of: [amount, who.mean_90ms]}]
policy: {version: p, review: 0.3, block: 0.6}
limits: {row_entries: 16}
""")
TOPICS = Topics()


@pytest.fixture(scope="module")
def checked() -> CheckedSpec:
    return parse_spec(SPEC_TEXT)


@pytest.fixture(scope="module")
def ensemble(checked: CheckedSpec, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder, rng, k = tmp_path_factory.mktemp("ensemble"), np.random.default_rng(1), len(checked.features)
    drafts = []
    for name, weight in (("one", 0.6), ("two", 0.4)):
        layer = Layer(rng.normal(0, 0.7, (k, 1)).tolist(), [-0.5], "logistic")
        inputs = [Input(impute=1.0, low=0.0, high=500.0, scale=100.0 if "mean" in f else 2.0) for f in checked.features]
        drafts.append(
            Draft(name, "dense-json", encode_dense(Dense([layer])), checked.features, inputs, NoCalibrator(), weight)
        )
    outline = Outline(
        "small", 1, "small", checked.sha256, checked.feature_hash, checked.features, Platt(1.0, 0.0),
        Thresholds("p", 0.3, 0.6), 0.5, Training(0, 1, 2, 1, "run", "0" * 64, {}),
    )  # fmt: skip
    compose_ensemble(folder / "e", outline, drafts, np.abs(rng.normal(1.0, 2.0, (100, k))))
    return Ensemble.load(folder / "e", version="1")


def raw(topic: str, partition: int, values: list[bytes], first: int = 0) -> RawRecords:
    n = len(values)
    times = [t if isinstance(t := _at(v), int) else 0 for v in values]
    return RawRecords(topic, np.full(n, partition, dtype=np.int32), first + 2 * np.arange(n),
                      np.array(times, dtype=np.int64), [b"k"] * n, values, [None] * n)  # fmt: skip


def _at(value: bytes) -> object:
    return json.loads(value).get("at") if value.startswith(b"{") else None


def history(seed: int, partitions: int = 2, n: int = 150) -> dict[SourcePartition, list[bytes]]:
    """Transactions of few entities, some late, doubled or broken; labels of some, some late, changed or broken."""
    rng = np.random.default_rng(seed)
    out: dict[SourcePartition, list[bytes]] = {
        SourcePartition(t, p): [] for t in (TOPICS.transactions, TOPICS.labels) for p in range(partitions)
    }
    labels: list[tuple[int, int, bytes]] = []
    for i in range(n):
        at = 1_000 + 2 * i - int(rng.integers(0, 12) * (rng.random() < 0.2))
        who, where = f"c{rng.integers(0, 5)}", f"t{rng.integers(0, 4)}"
        p = int(who[1:]) % partitions
        value = {"id": f"e{i}", "at": at, "amount": int(rng.integers(1, 500)), "who": who}
        if rng.random() < 0.9:
            value["where"] = where
        encoded = json.dumps(value).encode()
        mine = out[SourcePartition(TOPICS.transactions, p)]
        mine.append(encoded)
        if rng.random() < 0.08:
            mine.append(encoded)
        if rng.random() < 0.05:
            mine.append(b"broken")
        for _ in range(int(rng.integers(0, 3))):
            given = at + int(rng.integers(1, 60))
            label = {"event_id": f"e{i}", "event_time": at, "label": str(rng.choice(["fraud", "genuine"])),
                     "labelled_at": given, "source": "analyst", "who": who, "where": where}  # fmt: skip
            labels.append(
                (given + int(rng.integers(0, 20)), int(rng.integers(0, partitions)), json.dumps(label).encode())
            )
    for _, p, value in sorted(labels):
        out[SourcePartition(TOPICS.labels, p)].append(value)
    return out


def streams(checked: CheckedSpec, logs: dict[SourcePartition, list[bytes]], chunk: int) -> list[Stream]:
    extractors = Extractors(checked)

    def chunks(source: SourcePartition, values: list[bytes]) -> Iterator[RawRecords]:
        for low in range(0, len(values), chunk):
            yield raw(source.topic, source.partition, values[low : low + chunk], 2 * low)

    return [
        Stream(
            s,
            chunks(s, v),
            extractors.labels if s.topic == TOPICS.labels else extractors.transactions,
            s.topic == TOPICS.labels,
        )
        for s, v in logs.items()
    ]


def ordered(checked: CheckedSpec, logs: dict[SourcePartition, list[bytes]], chunk: int) -> Iterator[Run]:
    return in_order(streams(checked, logs, chunk), TOPICS.transactions, TOPICS.labels)


def run(
    checked: CheckedSpec, ensemble: Ensemble, logs: dict[SourcePartition, list[bytes]], out: Path, *,
    most: int, chunk: int = 20, scored: Range | None = None, warm: bool = True, comparison: Comparison | None = None,
) -> ReplayReport:  # fmt: skip
    verdicts = EffectiveLabels(checked)
    for source, values in logs.items():
        if source.topic == TOPICS.labels:
            verdicts.add(raw(source.topic, source.partition, values))
    pieces = cut(ordered(checked, logs, chunk), scored or Range(), most, warm=warm)
    source = ReplayInput(pieces, dict.fromkeys(logs, 0), sum(map(len, logs.values())), verdicts)
    return replay(source, checked, ensemble, TOPICS, out, SystemClock(), comparison=comparison)


@pytest.mark.parametrize("chunk", [1, 7, 1_000])
@pytest.mark.parametrize("seed", [1, 2])
def test_records_come_in_the_stated_order_whatever_the_chunks(checked: CheckedSpec, seed: int, chunk: int) -> None:
    logs = history(seed, partitions=3)
    wanted = []
    for source, values in logs.items():
        newest = -1
        for i, value in enumerate(values):
            if value != b"broken":
                record = json.loads(value)
                newest = max(newest, record.get("labelled_at", record.get("at")))
            wanted.append((newest, source.topic, source.partition, 2 * i))
    got = []
    for part in ordered(checked, logs, chunk):
        at = 0
        labels = list(zip(part.before.tolist(), part.label_time.tolist(), part.labels.partition.tolist(),
                          part.labels.offset.tolist(), strict=True))  # fmt: skip
        rows = zip(part.transaction_time.tolist(), part.transactions.partition.tolist(),
                   part.transactions.offset.tolist(), strict=True)  # fmt: skip
        for row, (time, partition, offset) in enumerate(rows):
            while at < len(labels) and labels[at][0] <= row:
                got.append((labels[at][1], TOPICS.labels, *labels[at][2:]))
                at += 1
            got.append((time, TOPICS.transactions, partition, offset))
        got += [(label[1], TOPICS.labels, *label[2:]) for label in labels[at:]]
    assert got == sorted(wanted)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_canonical_bytes_whatever_the_batch_size(
    checked: CheckedSpec, ensemble: Ensemble, tmp_path: Path, seed: int
) -> None:
    logs = history(seed)
    reports = [
        run(checked, ensemble, logs, tmp_path / str(m), most=m, chunk=c) for m, c in ((1, 9), (5, 3), (1_000, 40))
    ]
    assert len({report.scores_sha256 for report in reports}) == 1
    report = reports[0]
    assert report.scored > 100
    assert report.duplicates > 3
    assert report.dead_letters > 3
    scores = [pq.read_table(tmp_path / str(m) / "scores.parquet").drop(["scored_at"]) for m in (1, 1_000)]
    assert scores[0].equals(scores[1])
    for name in ("contributions", "lineage"):
        tables = [pq.read_table(tmp_path / str(m) / f"{name}.parquet") for m in (1, 1_000)]
        assert tables[0].equals(tables[1])


def test_rows_are_trimmed_at_the_same_transactions_whatever_the_batch_size_and_without_an_effect(
    ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, logs = parse_spec(SPEC_TEXT + "time: {allowed_lateness: 15ms}\n"), history(3)
    trims, trim = list[int](), MemoryRowStore.trim

    def spy(store: MemoryRowStore, before: int) -> None:
        trim(store, before)
        trims.append(before)

    def replayed(most: int) -> tuple[str, list[int]]:
        trims.clear()
        return run(checked, ensemble, logs, tmp_path, most=most, chunk=9).scores_sha256, list(trims)

    def recomputed(most: int) -> bytes:
        pieces = cut(ordered(checked, logs, 20), Range(), most, warm=True)
        found = recompute_features(checked, pieces, dict.fromkeys(logs, 0))
        return b"".join(each.features.tobytes() for each in found)

    monkeypatch.setattr(MemoryRowStore, "trim", spy)
    whole, features = replayed(1_000), recomputed(1_000)
    assert whole[1] == []
    monkeypatch.setattr("stream_scorer.replay.pieces.TRIM_EVERY", 10)
    one, five, all_at_once = replayed(1), replayed(5), replayed(1_000)
    assert one == five == all_at_once
    assert one[0] == whole[0]
    # Features reach back by 105 ms; the history has 300 ms, from 1,000 on.
    assert len(one[1]) >= 15
    assert one[1][-1] > 1_150
    trims.clear()
    assert recomputed(7) == features
    assert trims == one[1]


def test_pieces_are_split_where_rows_are_trimmed_before_the_labels_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    transactions, labels = raw(TOPICS.transactions, 0, [b"{}"] * 5), raw(TOPICS.labels, 0, [b"{}"] * 3)
    applied = {SourcePartition(TOPICS.transactions, 0): 7}

    def parts(every: int, before: list[int], *served: Any) -> list[tuple[int, list[int], bool, object, object]]:
        monkeypatch.setattr("stream_scorer.replay.pieces.TRIM_EVERY", every)
        piece = Piece(transactions, labels, np.array(before), True, *served)
        found = list(with_trims([piece]))
        assert [o for part, _ in found for o in part.transactions.offset.tolist()] == transactions.offset.tolist()
        assert [o for part, _ in found for o in part.labels.offset.tolist()] == labels.offset.tolist()
        return [
            (len(part.transactions), part.before.tolist(), trims, part.batch_start, part.served_offsets)
            for part, trims in found
        ]

    assert parts(6, [1, 2, 5]) == [(5, [1, 2, 5], False, None, None)]
    assert parts(5, [1, 2, 5]) == [(5, [1, 2], True, None, None), (0, [0], False, None, None)]
    assert parts(2, [1, 2, 4]) == [(2, [1], True, None, None), (2, [0], True, None, None), (1, [0], False, None, None)]
    assert parts(5, [1, 2, 4]) == [(5, [1, 2, 4], True, None, None)]
    served = [(3, [0, 0, 0], True, True, applied), (2, [], False, False, None)]
    assert parts(3, [0, 0, 0], True, applied) == served


def test_skew_names_the_feature_that_was_served_otherwise(checked: CheckedSpec, ensemble: Ensemble) -> None:
    logs = history(2)
    served: dict[int, list[Any]] = {0: [], 1: []}

    def keep(_score: bytes, _contribution: bytes, row: LineageRow) -> None:
        features, status = np.array(row.features, np.float64), np.array(row.feature_status, np.int8)
        served[row.source.partition].append((row.source.offset, features, status))

    def pieces(most: int) -> Iterator[Piece]:
        return cut(ordered(checked, logs, 20), Range(), most, warm=True)

    start = dict.fromkeys(logs, 0)
    Replay(checked, ensemble, TOPICS, SystemClock(), start=start, emit=keep).run(pieces(40))
    profile = ensemble.manifest.reference_profile

    def measured() -> SkewReport:
        return measure_skew(checked, pieces(7), start, lambda p, _: iter(served[p]), profile)

    same = measured()
    assert same.scores == sum(map(len, served.values())) > 100
    assert not any(f.different for f in same.features)
    assert all(sum(f.counts) == same.scores for f in same.features)
    place = checked.features.index("who.mean_90ms")
    for partition in served:
        for _, features, status in served[partition][::3]:
            features[place] = np.nan_to_num(features[place]) + 5.0
            status[0] = MISSING
    skew = measured()
    assert {f.name for f in skew.features if f.different} == {"who.mean_90ms"}
    mean = skew.features[place]
    altered = sum(len(range(0, len(each), 3)) for each in served.values())
    assert mean.different == skew.without == altered
    assert mean.largest >= 5.0
    assert mean.mean_recorded is not None
    assert mean.mean_recomputed is not None
    assert mean.mean_recorded > mean.mean_recomputed
    assert skew.features[0].compared == skew.scores - altered
    assert measure_skew(checked, pieces(7), start, lambda *_: iter(()), profile).scores == 0


def test_another_label_gives_other_bytes(checked: CheckedSpec, ensemble: Ensemble, tmp_path: Path) -> None:
    logs = history(1)
    before = run(checked, ensemble, logs, tmp_path / "a", most=50).scores_sha256
    source = SourcePartition(TOPICS.labels, 0)
    logs[source] = logs[source][:10] + logs[source][11:]
    assert run(checked, ensemble, logs, tmp_path / "b", most=50).scores_sha256 != before


def test_pieces_are_cut_before_a_label_that_would_reach_back(checked: CheckedSpec) -> None:
    logs = history(3)
    for most in (4, 1_000):
        total = labels = 0
        for piece in cut(ordered(checked, logs, 25), Range(), most, warm=True):
            assert 0 < len(piece) <= most
            owners = [_where(v) for v in piece.transactions.value]
            for before, value in zip(piece.before.tolist(), piece.labels.value, strict=True):
                assert json.loads(value or b"")["where"] not in owners[:before]
            total += len(piece.transactions)
            labels += len(piece.labels)
        assert total + labels == sum(map(len, logs.values()))


def _where(value: bytes | None) -> str | None:
    return json.loads(value).get("where") if value and value != b"broken" else None


@pytest.mark.parametrize("most", [3, 500])
def test_a_range_is_scored_as_in_the_whole_when_warm_and_alone_when_not(
    checked: CheckedSpec, ensemble: Ensemble, tmp_path: Path, most: int
) -> None:
    logs = history(4)
    run(checked, ensemble, logs, tmp_path / "all", most=50)
    scored = Range(time_start=1_100, time_end=1_200)
    warm = run(checked, ensemble, logs, tmp_path / "warm", most=most, scored=scored)
    cold = run(checked, ensemble, logs, tmp_path / "cold", most=most, scored=scored, warm=False)
    everything = {_key(c): c for c in rows(tmp_path / "all")}
    assert warm.scored == cold.scored > 30
    assert warm.warmed > 30
    assert cold.warmed == 0
    for c in rows(tmp_path / "warm"):
        assert c == everything[_key(c)]
    assert [_key(c) for c in rows(tmp_path / "cold")] == [_key(c) for c in rows(tmp_path / "warm")]
    assert any(c != everything[_key(c)] for c in rows(tmp_path / "cold"))
    again = run(checked, ensemble, logs, tmp_path / "again", most=17, scored=scored, warm=False)
    assert again.scores_sha256 == cold.scores_sha256


def test_a_range_by_offsets(checked: CheckedSpec, ensemble: Ensemble, tmp_path: Path) -> None:
    logs = history(5)
    run(checked, ensemble, logs, tmp_path / "o", most=10, scored=Range(offset_start={0: 40}, offset_end={0: 90, 1: 20}))
    places = [_key(c) for c in rows(tmp_path / "o")]
    assert {o for p, o in places if p == 0} <= set(range(40, 90))
    assert {o for p, o in places if p == 1} <= set(range(20))
    assert len(places) > 25


def rows(folder: Path, name: str = "lineage") -> list[dict[str, object]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()  # type: ignore[no-any-return]


def _key(contribution: dict[str, object]) -> tuple[int, int]:
    source = contribution["source"]
    assert isinstance(source, dict)
    return source["partition"], source["offset"]


def test_applied_offsets_are_what_came_before_each_transaction(
    checked: CheckedSpec, ensemble: Ensemble, tmp_path: Path
) -> None:
    logs = history(6)
    run(checked, ensemble, logs, tmp_path, most=64)
    position = dict.fromkeys(logs, 0)
    wanted = {}
    for part in ordered(checked, logs, 1_000):
        everything = [(b, 0, i) for i, b in enumerate(part.before.tolist())]
        everything += [(i, 1, i) for i in range(len(part.transactions))]
        for _, is_transaction, i in sorted(everything):
            records = part.transactions if is_transaction else part.labels
            source = SourcePartition(records.topic, int(records.partition[i]))
            if is_transaction:
                wanted[source.partition, int(records.offset[i])] = dict(position)
            position[source] = int(records.offset[i]) + 1
    contributions = rows(tmp_path)
    assert contributions
    for c in contributions:
        applied = c["applied_offsets"]
        assert isinstance(applied, list)
        recorded = {SourcePartition(a["topic"], a["partition"]): a["next_offset"] for a in applied}
        assert recorded == wanted[_key(c)]


def test_parquet_and_json_lines_give_the_same(checked: CheckedSpec, ensemble: Ensemble, tmp_path: Path) -> None:
    logs = history(7, partitions=1)
    values = [v for v in logs[SourcePartition(TOPICS.transactions, 0)] if v != b"broken"]
    labels = logs[SourcePartition(TOPICS.labels, 0)]
    for name, lines in (("t", values), ("l", labels)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        pq.write_table(pa.Table.from_pylist([json.loads(v) for v in lines]), tmp_path / f"{name}.parquet")
    digests = set()
    for suffix in ("jsonl", "parquet"):
        source = from_files(tmp_path / f"t.{suffix}", tmp_path / f"l.{suffix}", TOPICS, checked, Range(), 13, warm=True)
        report = replay(source, checked, ensemble, TOPICS, tmp_path / suffix, SystemClock())
        assert report.scored == len(values)
        assert report.quality is not None
        assert report.quality.labelled > 10
        digests.add(report.scores_sha256)
    assert len(digests) == 1


def test_a_file_that_cannot_be_read_is_named(checked: CheckedSpec, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not")
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "y.parquet")
    for name, word in (("none.parquet", "no file"), ("x.parquet", "cannot read"), ("y.parquet", "no column 'at'")):
        with pytest.raises(UsageError, match=word) as found:
            list(from_files(tmp_path / name, None, TOPICS, checked, Range(), 10, warm=True).pieces)
        assert name in str(found.value)


def served_of(folder: Path) -> list[ServedRecord]:
    """What a replay wrote, as if it had been served. A column of Parquet has null where a record lacks the field."""

    def record(row: dict[str, Any], kind: type[Any]) -> Any:
        absent = {field.name for field in msgspec.structs.fields(kind) if field.default is msgspec.UNSET}
        return msgspec.convert({k: v for k, v in row.items() if v is not None or k not in absent}, kind)

    columns = [
        [record(row, kind) for row in rows(folder, name)]
        for name, kind in (("scores", Score), ("contributions", Contribution), ("lineage", LineageRow))
    ]
    return [ServedRecord(*row) for row in zip(*columns, strict=True)]


def test_files_hold_the_records_whole(checked: CheckedSpec, ensemble: Ensemble, tmp_path: Path) -> None:
    """Converted back, they are the records whose canonical bytes the digest is of."""
    import hashlib

    report = run(checked, ensemble, history(8, partitions=1), tmp_path, most=30)
    digest = hashlib.sha256()
    for served in served_of(tmp_path):
        for record in served:
            digest.update(canonical(record))
    assert digest.hexdigest() == report.scores_sha256


def test_a_difference_is_found_and_named(checked: CheckedSpec, ensemble: Ensemble, tmp_path: Path) -> None:
    logs = history(9, partitions=1)
    run(checked, ensemble, logs, tmp_path / "live", most=30)
    served = served_of(tmp_path / "live")

    def compared(live: list[ServedRecord]) -> ReplayReport:
        comparison = Comparison(lambda _: iter(live), checked.features, TOPICS.transactions)
        return run(checked, ensemble, logs, tmp_path / "again", most=7, comparison=comparison)

    report = compared(served)
    assert (report.compared, report.different, report.first_difference) == (len(served), 0, None)

    score, _, lineage = served[20]
    replace = msgspec.structs.replace
    bent = replace(lineage, features=[lineage.features[0], 12_345.5, *lineage.features[2:]])
    report = compared([*served[:20], served[20]._replace(lineage=bent), *served[21:]])
    assert report.different == 1
    found = report.first_difference
    assert found is not None
    assert (found.offset, found.field) == (lineage.source.offset, "lineage.features[1] (who.count_90ms)")
    assert found.live == "12345.5"

    assert compared(served[:20] + served[21:]).different == 1
    moved = replace(lineage, source=replace(lineage.source, offset=lineage.source.offset - 1))
    assert compared([*served[:20], served[20]._replace(lineage=moved), *served[20:]]).different == 1
    # When it was scored, and under which arm, makes no difference.
    later = served[20]._replace(score=replace(score, scored_at=5, arm="b"), lineage=replace(lineage, arm="b"))
    assert compared([*served[:20], later, *served[21:]]).different == 0
    # The scorer's rows lacked what retention had removed: counted, and no difference.
    cut = replace(lineage, features=[0.0, *lineage.features[1:]], feature_status=[4] * len(lineage.features))
    report = compared([*served[:20], served[20]._replace(lineage=cut), *served[21:]])
    assert (report.compared, report.different, report.incomplete) == (len(served) - 1, 0, 1)


def test_the_first_difference_has_a_path() -> None:
    score = Score("e", 1, 2, 0.5, "approve", "model", "s", "1", "a", "p", 1.0, False, ["x"], 0, 5)
    assert first_difference(score, msgspec.structs.replace(score, scored_at=9)) is None
    assert first_difference(score, msgspec.structs.replace(score, degraded=["y"])) == ("degraded[0]", "x", "y")
    assert first_difference(score, msgspec.structs.replace(score, degraded=[])) == ("degraded", ["x"], [])


def test_the_last_label_by_rank_time_and_arrival_stands(checked: CheckedSpec) -> None:
    ranked = parse_spec(SPEC_TEXT + "labels: {source_rank: {chargeback: 2}}\n")

    def label(event: str, at: int, says: str, source: str) -> bytes:
        return json.dumps(
            {"event_id": event, "event_time": 1, "label": says, "labelled_at": at, "source": source}
        ).encode()

    verdicts = EffectiveLabels(ranked)
    verdicts.add(raw(TOPICS.labels, 0, [
        label("a", 9, "genuine", "analyst"), label("a", 5, "fraud", "chargeback"), label("a", 99, "genuine", "analyst"),
        label("b", 5, "fraud", "analyst"), label("b", 5, "genuine", "analyst"), b"broken",
    ]))  # fmt: skip
    labelled, fraud = verdicts.of(["a", "b", "c"])
    assert labelled.tolist() == [True, True, False]
    assert fraud.tolist() == [True, False, False]
    # Scores are kept only to be compared with labels.
    batch = ["a", "b", "b"], np.array([0.9, 0.1, 0.1]), np.full((3, 2), 0.5), np.array([False, False, True])
    for known, kept in ((verdicts, 3), (EffectiveLabels(ranked), 0)):
        scored = ScoredRows(known)
        scored.add(*batch)
        assert len(scored) == kept
        quality = evaluate(scored, ["one", "two"], 0.5, 0.8)
        assert (quality is None) == (kept == 0)
        if quality is not None:
            assert (quality.rows, quality.labelled, quality.frauds, quality.duplicates) == (2, 2, 1, 1)
            assert quality.ensemble.review.precision == quality.ensemble.review.recall == 1.0


def test_pieces_that_are_not_scored_have_no_scores(checked: CheckedSpec) -> None:
    pieces: list[Piece] = list(cut(ordered(checked, history(2), 30), Range(time_start=1_150), 40, warm=True))
    flags = [piece.scoring for piece in pieces if len(piece.transactions)]
    assert flags == sorted(flags)
    assert any(flags)
    assert not all(flags)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Give either"),
        (["--from-topics", "--transactions", "x.parquet"], "Give either"),
        (["--from-topics", "--labels", "x.parquet"], "--labels requires"),
        (["--transactions", "x.parquet", "--compare"], "require --from-topics"),
        (["--from-topics", "--as-served", "--warm"], "do not give"),
        (["--from-topics", "--start", "yesterday"], "not a time"),
        (["--from-topics", "--start", "2025-01-02", "--end", "2025-01-01"], "must be before"),
        (["--transactions", "x.parquet", "--start", "0:5"], "offsets require topics"),
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], word: str) -> None:
    from stream_scorer.cli.replay import replay as command

    done = CliRunner().invoke(command, ["--out", "nowhere", *arguments])
    assert done.exit_code == 2
    assert word in done.output
    assert not Path("nowhere").exists()
