"""Evaluation: one result whatever the batches and interruptions, labels as of a time, figures as scikit-learn's."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn import metrics

from stream_scorer.cli.main import cli
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Thresholds
from stream_scorer.errors import SettingsError, UsageError
from stream_scorer.evaluation import distributed, job, scoring, sources
from stream_scorer.evaluation.job import evaluate, facts_of
from stream_scorer.evaluation.options import Options
from stream_scorer.evaluation.result import Evaluation
from stream_scorer.evaluation.sources import Source, from_files
from stream_scorer.evaluation.store import Store, exclusive
from stream_scorer.gate.quality import quality
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability import openlineage
from stream_scorer.records import LineageRow, Score
from stream_scorer.replay.pieces import Range
from stream_scorer.replay.run import Replay
from stream_scorer.replay.sources import from_files as replay_files
from stream_scorer.reports.evaluation import findings, page
from stream_scorer.reports.evaluation_run import run_record
from stream_scorer.reports.evaluation_tables import summary_lines, versions_table
from stream_scorer.spec import CheckedSpec, parse_spec
from stream_scorer.spec.gate_rules import Quality
from tests.support.small_history import SPEC_TEXT, small_ensemble, write_history
from tests.support.workers import LocalWorkers

TOPICS = Topics()
LAST = 1_000 + 2 * 1_200


@pytest.fixture(scope="module")
def checked() -> CheckedSpec:
    return parse_spec(SPEC_TEXT)


@pytest.fixture(scope="module")
def versions(checked: CheckedSpec, tmp_path_factory: pytest.TempPathFactory) -> list[Ensemble]:
    """Two versions: member `one` is the same, `two` is another model, and `three` only belongs to the second one."""
    folder = tmp_path_factory.mktemp("versions")
    return [
        small_ensemble(folder, checked, "1", {"one": 1, "two": 2}),
        small_ensemble(folder, checked, "2", {"one": 1, "two": 4, "three": 3}),
    ]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_history(tmp_path_factory.mktemp("history"))


def source(
    history: tuple[Path, Path], checked: CheckedSpec, *, as_of: int | None = None, scored: Range | None = None,
    warm: bool = False,
) -> Source:  # fmt: skip
    return from_files(*history, TOPICS, checked, scored or Range(), as_of, warm=warm)


def run(
    history: tuple[Path, Path], checked: CheckedSpec, versions: Sequence[Ensemble], out: Path, *,
    as_of: int | None = None, rows: int = 300, scored: Range | None = None, warm: bool = False, replicates: int = 20,
) -> Evaluation:  # fmt: skip
    options = Options(
        budgets=(0.02, 0.1), cards_per_day=[5], review_cost=3, replicates=replicates, rows=rows, piece_rows=400
    )
    given = source(history, checked, as_of=as_of, scored=scored, warm=warm)
    return evaluate(given, checked, versions, options, out, SystemClock())


def table(out: Path) -> dict[str, Any]:
    found = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("piece-*.parquet"))])
    return {name: found.column(name).to_numpy(zero_copy_only=False) for name in found.column_names}


@pytest.fixture(scope="module")
def whole(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble],
    tmp_path_factory: pytest.TempPathFactory,
) -> Evaluation:  # fmt: skip
    return run(history, checked, versions, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("rows", [5, 4_096])
def test_the_same_digests_whatever_the_batch_size(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path,
    rows: int,
) -> None:  # fmt: skip
    again = run(history, checked, versions, tmp_path, rows=rows, replicates=0)
    assert again.digests == whole.digests
    assert whole.transactions > 1_000
    assert whole.duplicates > 30
    assert whole.refused > 3
    assert whole.frauds > 100


def test_scores_are_those_of_a_replay(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation
) -> None:
    replayed: list[tuple[str, float | None]] = []
    decode = msgspec.json.Decoder(Score).decode

    def keep(score: bytes, _contribution: bytes, _row: LineageRow) -> None:
        found = decode(score)
        replayed.append((found.event_id, found.score))

    given = replay_files(*history, TOPICS, checked, Range(), 64, warm=False)
    Replay(checked, versions[0], TOPICS, SystemClock(), start=given.start, emit=keep).run(given.pieces)
    found = table(Path(whole.out))
    assert list(zip(found["event_id"].tolist(), found["s0"].tolist(), strict=True)) == replayed


def test_parquet_and_json_lines_give_the_same_digests_and_counts(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    paths = []
    for path in history:
        lines = [json.dumps({k: v for k, v in row.items() if v is not None}) for row in pq.read_table(path).to_pylist()]
        paths.append(tmp_path / f"{path.stem}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n")
    again = run((paths[0], paths[1]), checked, versions, tmp_path / "out", replicates=0)
    assert again.digests == whole.digests
    assert again.refused == whole.refused
    # Rejected rows before and after the range are not among the refused ones.
    monkeypatch.setattr(sources, "CHUNK", 100)
    for scored in (Range(2_000, 2_600), Range(time_start=3_000), Range(time_end=1_500)):
        for warm in (True, False):
            refused = [
                sum(part.refused for part in source(files, checked, scored=scored, warm=warm).runs())
                for files in (history, (paths[0], paths[1]))
            ]
            assert refused[0] == refused[1] < whole.refused


def test_finer_times_than_milliseconds_give_the_same_digests(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path
) -> None:
    for path, names in zip(history, (["at"], ["event_time", "labelled_at"]), strict=True):
        columns = pq.read_table(path)
        for name in names:
            finer = pa.array(columns.column(name).to_numpy() * 1_000 + 999, pa.timestamp("us"))
            columns = columns.set_column(columns.schema.get_field_index(name), name, finer)
        pq.write_table(columns, tmp_path / path.name)
    again = run((tmp_path / "t.parquet", tmp_path / "l.parquet"), checked, versions, tmp_path / "out", replicates=0)
    assert again.digests == whole.digests


def test_a_later_label_changes_nothing_until_it_counts(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    middle = 2_500
    labels = pq.read_table(history[1]).to_pylist()
    changed = [
        row | {"label": "genuine" if row["label"] == "fraud" else "fraud"} if row["labelled_at"] > middle else row
        for row in labels
    ]
    later = [row for row in labels if row["labelled_at"] > middle]
    assert len(later) > 50
    pq.write_table(pa.Table.from_pylist(changed), tmp_path / "changed.parquet")
    other = history[0], tmp_path / "changed.parquet"
    before = run(history, checked, versions, tmp_path / "a", as_of=middle, replicates=0)
    after = run(other, checked, versions, tmp_path / "b", as_of=middle, rows=31, replicates=0)
    assert after.digests == before.digests
    assert after.labels_later == len(later)
    assert run(other, checked, versions, tmp_path / "c", replicates=0).digests != before.digests
    late = run(history, checked, versions, tmp_path / "d", as_of=LAST * 2, replicates=0)
    assert late.digests != before.digests
    assert late.labels_later == 0


def test_a_killed_evaluation_continues_with_the_same_digests(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Killed(BaseException):
        pass

    class Frozen(SystemClock):
        """Saving takes no time, so every piece is saved."""

        def monotonic(self) -> float:
            return 0.0

    process = scoring.Pass._process

    def dies(self: Any, *arguments: Any) -> None:
        if self.counts.scored > 1_000:
            raise Killed
        process(self, *arguments)

    monkeypatch.setattr(scoring.Pass, "_process", dies)
    options = Options(budgets=(0.02, 0.1), cards_per_day=[5], review_cost=3, replicates=0, rows=230, piece_rows=400)
    with pytest.raises(Killed):
        evaluate(source(history, checked), checked, versions, options, tmp_path, Frozen())
    monkeypatch.undo()
    resumed = run(history, checked, versions, tmp_path, rows=57, replicates=0)
    assert resumed.resumed == 800
    assert resumed.digests == whole.digests
    assert (resumed.refused, resumed.duplicates) == (whole.refused, whole.duplicates)
    again = run(history, checked, versions, tmp_path, replicates=0)
    assert again.resumed == len(table(tmp_path)["event_id"])
    assert again.digests == whole.digests
    assert run(history, checked, versions[:1], tmp_path, replicates=0).resumed == 0


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 256 rows, of two chunks each."""
    monkeypatch.setattr(sources, "CHUNK", 128)
    monkeypatch.setattr(distributed, "CHUNK", 128)
    monkeypatch.setattr(distributed, "BLOCK", 256)


def spread(
    history: tuple[Path, Path], checked: CheckedSpec, versions: Sequence[Ensemble], out: Path, whole: Evaluation,
    shards: int, scored: Range | None = None, warm: bool = False,
) -> Evaluation:  # fmt: skip
    """An evaluation by the functions that run on Ray, one after another."""
    folders = [sorted(Path(whole.out).parent.glob("versions0/*"))[int(version.version) - 1] for version in versions]
    options = Options(budgets=(0.02, 0.1), cards_per_day=[5], review_cost=3, replicates=0, rows=110, piece_rows=400)
    given = source(history, checked, scored=scored, warm=warm)
    where = distributed.Distribution(LocalWorkers(shards), folders)
    return evaluate(given, checked, versions, options, out, SystemClock(), where=where)


def test_a_worker_refuses_another_file_than_the_command_has(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On a cluster, every machine has a copy; an old one would be evaluated instead."""
    identities = iter(["of the command", distributed.identity_of(history[0])])
    monkeypatch.setattr(distributed, "identity_of", lambda _path: next(identities))
    with pytest.raises(UsageError, match="has another file at"):
        spread(history, checked, versions, tmp_path, whole, 1)


@pytest.mark.usefixtures("small_blocks")
def test_workers_refuse_microseconds_too(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path
) -> None:
    rows = [{**row, "at": 1_700_000_000_000_000} for row in pq.read_table(history[0]).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="the column 'at' has no times"):
        spread((tmp_path / "t.parquet", history[1]), checked, versions, tmp_path / "out", whole, 2)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.usefixtures("small_blocks")
def test_shards_give_the_digests_and_counts_of_one_process(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path,
    shards: int,
) -> None:  # fmt: skip
    found = spread(history, checked, versions, tmp_path / "all", whole, shards)
    assert found.digests == whole.digests
    assert (found.refused, found.duplicates) == (whole.refused, whole.duplicates)
    period = Range(1_500, 3_000)
    for warm in (True, False):
        one = run(history, checked, versions, tmp_path / f"one{warm}", scored=period, warm=warm, replicates=0)
        many = spread(history, checked, versions, tmp_path / f"many{warm}", whole, shards, period, warm)
        assert many.digests == one.digests
        assert (many.warmed, many.refused, many.labelled) == (one.warmed, one.refused, one.labelled)


@pytest.mark.usefixtures("small_blocks")
def test_a_distributed_evaluation_keeps_its_complete_pieces(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Killed(BaseException):
        pass

    add, rows = Store.add, []

    def dies(self: Store, columns: Any, record: Any, state: Any) -> None:
        if len(self.pieces) == 2:
            raise Killed
        rows.append(state)
        add(self, columns, record, state)

    monkeypatch.setattr(Store, "add", dies)
    with pytest.raises(Killed):
        spread(history, checked, versions, tmp_path, whole, 2)
    monkeypatch.setattr(Store, "add", add)
    resumed = spread(history, checked, versions, tmp_path, whole, 2)
    assert rows == [None, None]
    assert (resumed.resumed, resumed.digests) == (800, whole.digests)
    assert (resumed.refused, resumed.duplicates) == (whole.refused, whole.duplicates)


def test_figures_are_those_of_scikit_learn(whole: Evaluation) -> None:
    found = table(Path(whole.out))
    kept = ~found["duplicate"]
    fraud, value = found["label"][kept] == 1, found["value"][kept]
    assert whole.fraud_cards == len(np.unique(found["card"][kept][fraud]))
    for index, version in enumerate(whole.versions):
        score, alert = found[f"s{index}"][kept], found[f"d{index}"][kept] > 0
        assert version.average_precision.value == pytest.approx(metrics.average_precision_score(fraud, score))
        assert version.roc_auc.value == pytest.approx(metrics.roc_auc_score(fraud, score))
        assert version.calibration.brier == pytest.approx(metrics.brier_score_loss(fraud, score))
        assert version.alerts.precision == pytest.approx(metrics.precision_score(fraud, alert))
        assert version.alerts.recall == pytest.approx(metrics.recall_score(fraud, alert))
        assert version.alerts.value_caught == int(value[fraud & alert].sum())
        assert version.alerts.value_lost == int(value[fraud & ~alert].sum())
        assert version.alerts.review_cost == 3 * int((found[f"d{index}"][kept] == 1).sum())
        unlabelled = found["label"][kept] == -1
        assert version.alerts.false_positive_rate == pytest.approx((alert & ~fraud).sum() / (~fraud).sum())
        low = (alert & ~fraud & ~unlabelled).sum() / (~fraud).sum()
        assert version.alerts.false_positive_rate_low == pytest.approx(low)
        for budget in version.budgets:
            wanted = int((budget.budget or 0) * len(score))
            threshold = np.sort(score)[-wanted]
            assert budget.threshold == threshold
            assert budget.alerts == int((score >= threshold).sum())
            assert budget.caught == int((fraud & (score >= threshold)).sum())
        for interval in (version.average_precision, version.roc_auc, *version.intervals.values()):
            assert interval.low is not None
            assert interval.high is not None
            assert interval.low < interval.high
        for dimension in ("day", "label age", "channel"):
            groups = [group for group in version.groups if group.dimension == dimension]
            assert sum(group.alerts.alerts for group in groups) == version.alerts.alerts
    for index, member in enumerate(whole.members):
        score = found[f"m{index}"][kept]
        assert member.average_precision == pytest.approx(metrics.average_precision_score(fraud, score))
    assert [member.versions for member in whole.members] == [["1", "2"], ["1"], ["2"], ["2"]]


def test_a_candidate_is_compared_on_the_same_transactions(whole: Evaluation) -> None:
    found = table(Path(whole.out))
    kept = ~found["duplicate"]
    decided = found["d0"][kept], found["d1"][kept]
    before, after = (decision > 0 for decision in decided)
    (pair,) = whole.candidates
    assert (pair.all.only_candidate, pair.all.only_champion) == (
        int((after & ~before).sum()), int((before & ~after).sum()),
    )  # fmt: skip
    assert pair.all.cards_gained == len(set(found["card"][kept][after & ~before].tolist()))
    changes = pq.read_table(Path(whole.out) / "changes.parquet").to_pylist()
    changed = decided[0] != decided[1]
    assert {row["event_id"] for row in changes} == set(found["event_id"][kept][changed].tolist())
    assert len(changes) == int(changed.sum()) > int((after != before).sum())
    assert (pair.all.to_block, pair.all.to_review) == tuple(
        int(((decided[0] == one) & (decided[1] == other)).sum()) for one, other in ((1, 2), (2, 1))
    )
    assert {moved.member for moved in pair.moved} == {"two", "three"}
    named = [row["moved_by"] for row in changes]
    assert named.count("several") == pair.unexplained < len(named)
    change = pair.differences["recall"]
    fraud = found["label"][kept] == 1
    assert change.value == pytest.approx(after[fraud].mean() - before[fraud].mean())


def test_a_removed_member_moves_decisions_and_no_other_member(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    fewer = small_ensemble(tmp_path, checked, "3", {"one": 1, "two": 4})
    (pair,) = run(history, checked, [versions[1], fewer], tmp_path / "out", replicates=0).candidates
    changed = pair.all.only_candidate + pair.all.only_champion + pair.all.to_block + pair.all.to_review
    (moved,) = pair.moved
    assert (moved.member, moved.gained + moved.lost, pair.unexplained) == ("combination", changed, 0)
    changes = pq.read_table(tmp_path / "out" / "changes.parquet").to_pylist()
    assert changed > 0 and {row["moved_by"] for row in changes} == {"combination"}


def blocking(version: Ensemble, block: float) -> Ensemble:
    """`version` with another threshold of blocks."""
    found = copy.copy(version)
    found.manifest = msgspec.structs.replace(version.manifest, thresholds=Thresholds("p", 0.3, block))
    return found


def test_blocks_change_at_the_thresholds_of_a_segment(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    """A segment with all transactions decides as thresholds of the versions would."""
    segment = "block: 0.6, segments: [{name: all, where: {amount: {min: 0}}, review: 0.3, block: 0.4}]}"
    segmented = parse_spec(SPEC_TEXT.replace("block: 0.6}", segment))
    (one,) = run(history, segmented, versions, tmp_path / "a", replicates=0).candidates
    own = [blocking(version, 0.4) for version in versions]
    (other,) = run(history, checked, own, tmp_path / "b", replicates=0).candidates
    assert min(one.all.to_block, one.all.to_review) > 0
    assert (one.all, one.moved, one.unexplained) == (other.all, other.moved, other.unexplained)


def test_reviews_that_become_blocks_are_changed_decisions(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    """The same alerts, but all of them are declined payments."""
    strict = blocking(versions[0], 0.3)
    strict.version = "3"
    result = run(history, checked, [versions[0], strict], tmp_path)
    found = table(tmp_path)
    kept = ~found["duplicate"]
    reviews, label = found["d0"][kept] == 1, found["label"][kept]
    (pair,), n = result.candidates, int(reviews.sum())
    assert (pair.all.only_candidate, pair.all.only_champion, pair.all.to_block, pair.all.to_review) == (0, 0, n, 0)
    assert n == pair.frauds.to_block + pair.genuine.to_block + pair.unlabelled.to_block > 50
    assert [(moved.member, moved.gained, moved.lost) for moved in pair.moved] == [("policy", n, 0)]
    changes = pq.read_table(tmp_path / "changes.parquet").to_pylist()
    assert {(row["champion_decision"], row["candidate_decision"], row["moved_by"]) for row in changes} == {
        ("review", "block", "policy")
    }
    assert len(changes) == n
    blocks, champions = result.versions[1].alerts, result.versions[0].alerts
    assert (blocks.blocks, blocks.blocks - champions.blocks) == (blocks.alerts, n)
    assert blocks.blocked_genuine - champions.blocked_genuine == int((reviews & (label != 1)).sum())
    assert blocks.blocked_genuine_low - champions.blocked_genuine_low == int((reviews & (label == 0)).sum())
    for metric, share in (
        ("block_rate", n / len(label)),
        ("blocked_genuine_rate", (reviews & (label != 1)).sum() / (label != 1).sum()),
    ):
        change = pair.differences[metric]
        assert change.value == pytest.approx(share)
        assert change.low is not None and 0 < change.low < share
        refused = quality(Quality(metric, 0.01), result)  # type: ignore[arg-type]
        assert (refused.verdict, refused.measured) == ("refuse", change.high)
    assert quality(Quality("alert_rate", 0.0), result).verdict == "pass"
    assert "worse: blocked genuine rate +" in findings(result)[0]
    _, headings, rows = versions_table(result)
    bounds = f"{blocks.blocked_genuine_low:,} to {blocks.blocked_genuine:,}"
    assert rows[1][headings.index("!blocks") :][:2] == [f"{blocks.alerts:,}", bounds]
    assert bounds in page(result)


def test_a_range_with_and_without_earlier_records(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path
) -> None:
    scored = Range(time_start=2_000, time_end=2_600)
    warm = run(history, checked, versions, tmp_path / "warm", scored=scored, warm=True, replicates=0)
    cold = run(history, checked, versions, tmp_path / "cold", scored=scored, rows=7, replicates=0)
    everything = table(Path(whole.out))
    score_of = dict(zip(everything["event_id"], everything["s1"], strict=True))
    found, alone = table(tmp_path / "warm"), table(tmp_path / "cold")
    assert len(found["event_id"]) > 250
    assert found["event_id"].tolist() == alone["event_id"].tolist()
    assert warm.warmed > 400
    assert cold.warmed == 0
    copies = found["duplicate"]
    assert [score_of[e] for e in found["event_id"][~copies]] == found["s1"][~copies].tolist()
    assert cold.digests.scores != warm.digests.scores


def test_the_command(
    history: tuple[Path, Path], versions: list[Ensemble], whole: Evaluation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "spec.yaml").write_text(SPEC_TEXT)
    folders = [str(path) for path in sorted(Path(whole.out).parent.glob("versions0/*"))]
    arguments = ["evaluate", folders[1], "--ensemble", folders[0], "--spec", str(tmp_path / "spec.yaml"),
                 "--transactions", str(history[0]), "--labels", str(history[1]), "--out", str(tmp_path / "out"),
                 "--budgets", "0.02,0.1", "--replicates", "0"]  # fmt: skip
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert f"{whole.transactions:,} transactions" in shown.output
    assert "ensembles against their members" in shown.output
    events: list[Any] = []
    with monkeypatch.context() as sent:
        sent.setenv("OPENLINEAGE_URL", "http://127.0.0.1:1")
        sent.setattr(openlineage._Sender, "_emit", lambda _self, event: events.append(event) or "")
        found = CliRunner().invoke(cli, [*arguments, "--json", "--html", str(tmp_path / "page.html")])
    assert found.exit_code == 0, found.exception
    # The candidate in a folder is the dataset that `train` writes, so that the two runs are connected.
    assert [(each.namespace, each.name) for each in events[0].inputs[2:]] == [("file", folder) for folder in folders]
    result = msgspec.json.decode(found.stdout, type=Evaluation)
    assert [v.alerts for v in result.versions] != []
    assert result.resumed == whole.transactions + whole.duplicates
    assert result.versions[0].roc_auc.value == whole.versions[0].roc_auc.value
    assert "Effective challenge" in (tmp_path / "page.html").read_text()
    # A page that cannot be written is an error at once, or after the figures are shown.
    unwritable = ["--html", str(tmp_path / "spec.yaml" / "page.html")]
    early = CliRunner().invoke(cli, [*arguments, *unwritable, "--transactions", str(tmp_path / "none")])
    assert "spec.yaml is not a folder" in str(early.exception)
    with monkeypatch.context() as full:
        full.setattr("stream_scorer.cli.evaluate.require_writable", lambda *_paths: None)
        late = CliRunner().invoke(cli, [*arguments, *unwritable])
    assert "cannot write" in str(late.exception)
    assert "ensembles against their members" in late.output
    same = CliRunner().invoke(cli, ["evaluate", folders[0], *arguments[1:]])
    assert "is the champion: it has the same manifest" in str(same.exception)
    wrong = CliRunner().invoke(cli, [*arguments, "--budgets", "some"])
    assert wrong.exit_code == 2
    for wrong_option, message in (
        (["--labels-as-of", "soon"], "--labels-as-of 'soon' is not a time"),
        (["--labels-as-of", "1735689600000000"], "would be epoch ms after the year 9999"),  # microseconds
        (["--seed", str(1 << 70)], "--seed"),
        (["--start", "2099-01-01"], "there is nothing to evaluate: no transaction of the input is in the range"),
    ):
        wrong = CliRunner().invoke(cli, [*arguments[:-2], "--replicates", "1", *wrong_option])
        assert wrong.exit_code != 0
        assert message in wrong.output + str(wrong.exception)
    wrong = CliRunner().invoke(cli, [*arguments, "--workers", "2"])
    assert wrong.exit_code == 2
    assert "require --engine ray" in wrong.output
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        early = CliRunner().invoke(cli, [*arguments, "--html", "page.html", "--transactions", str(tmp_path / "none")])
    assert ".[report]" in str(early.exception)
    monkeypatch.setitem(sys.modules, "ray", None)
    absent = CliRunner().invoke(cli, [*arguments, "--engine", "ray"])
    assert isinstance(absent.exception, SettingsError)
    assert ".[ray]" in str(absent.exception)


@pytest.mark.parametrize("named", ["t.parquet", "t.pq"])
def test_labels_that_cannot_be_read_are_shown_and_many_of_them_refused(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], whole: Evaluation, tmp_path: Path,
    named: str,
) -> None:  # fmt: skip
    """Without this check, their frauds would count as genuine. A Parquet file may have any name."""
    shutil.copy(history[0], tmp_path / named)
    labels = pq.read_table(history[1]).to_pylist()

    def judged(rows: list[dict[str, Any]]) -> Evaluation:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"labels-{named}")
        files = tmp_path / named, tmp_path / f"labels-{named}"
        return run(files, checked, versions, tmp_path / "out", replicates=0)

    assert judged(labels).digests == whole.digests
    few = judged([*labels, labels[0] | {"label": "FRAUD"}])
    assert (few.labels_refused, few.frauds) == (1, whole.frauds)
    assert "1 labels that cannot be read" in " ".join(summary_lines(few))
    wrong = [row | {"label": row["label"].upper()} for row in labels]
    with pytest.raises(
        UsageError, match=f"{len(labels)} of {len(labels)} labels are rejected .*; the first is row 1: "
    ):
        judged(wrong)
    with pytest.raises(UsageError, match="labels are rejected"):
        replay_files(tmp_path / named, tmp_path / f"labels-{named}", TOPICS, checked, Range(), 64, warm=False)


def test_the_folder_is_of_one_evaluation_and_has_what_that_wrote(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run(history, checked, versions, tmp_path, replicates=0)
    with exclusive(tmp_path), pytest.raises(UsageError, match="another evaluation is writing"):
        run(history, checked, versions, tmp_path, replicates=0)
    second = tmp_path / "piece-000002.parquet"
    columns = pq.read_table(second)
    place = columns.column_names.index("label")
    for altered in (
        columns.set_column(place, "label", pa.array(np.ones(len(columns), np.int8))), columns.slice(0, 10),
    ):  # fmt: skip
        pq.write_table(altered, second)
        with pytest.raises(UsageError, match="piece-000002.parquet is not as the evaluation wrote it"):
            run(history, checked, versions, tmp_path, replicates=0)
    # Another release may compute other scores.
    monkeypatch.setattr(job, "__version__", "next")
    assert run(history, checked, versions, tmp_path, replicates=0).resumed == 0
    (tmp_path / "changes.parquet").unlink()
    (tmp_path / "changes.parquet").mkdir()
    with pytest.raises(UsageError, match="cannot use"):
        run(history, checked, versions, tmp_path, replicates=0)


def test_files_of_others_are_not_replaced(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    (tmp_path / "rows-2024.parquet").write_text("mine")
    with pytest.raises(UsageError, match="has rows-2024.parquet, but no evaluation wrote it"):
        run(history, checked, versions, tmp_path, replicates=0)
    assert (tmp_path / "rows-2024.parquet").read_text() == "mine"


def test_a_finding_names_transactions_without_a_score(whole: Evaluation) -> None:
    lacking = msgspec.structs.replace(whole.versions[1], missing=7)
    found = findings(msgspec.structs.replace(whole, versions=[whole.versions[0], lacking]))[0]
    assert "leaves out transactions without a score: 7 of the candidate, 0 of the champion" in found
    assert "without a score" not in findings(whole)[0]


def test_few_cards_show_no_difference(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    """All weights of a bootstrap over one card are equal: its intervals would have no width."""
    rows = [row | {"who": "c1"} for row in pq.read_table(history[0]).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = run((tmp_path / "t.parquet", history[1]), checked, versions, tmp_path / "out")
    (pair,) = found.candidates
    assert all(each.value is not None and each.low is None for each in pair.differences.values())
    judged = "average precision, recall, precision, false-positive rate, blocked genuine rate, amount caught"
    assert f"not judged: {judged}." in findings(found)[0]
    assert "better" not in findings(found)[0]


def test_two_ensembles_with_the_same_version_have_different_names_on_the_page(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    twin = copy.copy(versions[1])
    twin.name, twin.version = "other", "1"
    found = run(history, checked, [versions[0], twin], tmp_path, replicates=0)
    assert [v.label for v in found.versions] == ["small.1", "other.1"]
    assert findings(found)[0].startswith("Version other.1 against small.1: ")
    assert found.members[0].versions == ["small.1", "other.1"]
    assert set(pq.read_table(tmp_path / "changes.parquet").column("candidate").to_pylist()) == {"other.1"}
    assert "other.1.minus_champion.recall" in run_record(found, page(found)).metrics


def test_the_page_shows_wrong_times_and_groups_in_their_order(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    rows = pq.read_table(history[0]).to_pylist()
    last = 253_402_300_799_999
    rows = [*rows[:600], *(row | {"at": last - 5_000 + place} for place, row in enumerate(rows[600:]))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = run((tmp_path / "t.parquet", history[1]), checked, versions, tmp_path / "out", as_of=5_000)
    text = page(found)
    assert "Jan 1970" in text
    ages = text[text.index("<h3>label age</h3>") :]
    assert 0 < ages.index("below 1/2 horizon") < ages.index("2 to 4 horizons")


def test_the_page_has_the_headings_of_a_review(whole: Evaluation) -> None:
    text = page(whole)
    for heading in ("Conceptual soundness", "Ongoing monitoring", "Outcomes analysis", "Effective challenge"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("Model card: ") == 2
    assert text.count("<svg") == 4
    assert whole.digests.all in text
    assert findings(whole)[0].startswith("Version 2 against 1: ")


@pytest.mark.parametrize(("file", "column"), [(0, "at"), (1, "labelled_at"), (1, "event_time")])
@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("wrong", ["2025-03-01", 1_700_000_000_000_000])
def test_a_file_with_dates_as_text_or_microseconds_is_no_history(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path, file: int, column: str,
    wrong: object, *, lines: bool,
) -> None:  # fmt: skip
    paths = list(history)
    rows = [{**row, column: wrong} for row in pq.read_table(paths[file]).to_pylist()]
    paths[file] = tmp_path / ("wrong.jsonl" if lines else "wrong.parquet")
    if lines:
        paths[file].write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), paths[file])
    with pytest.raises(UsageError, match=rf"the column '{column}' has no times; the first value is {wrong!r}"):
        run((paths[0], paths[1]), checked, versions, tmp_path / "out", replicates=0)


def test_errors_of_the_user(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="occurs twice"):
        run(history, checked, [versions[0], versions[0]], tmp_path)
    with pytest.raises(UsageError, match="no file"):
        source((tmp_path / "absent.parquet", history[1]), checked)
    lines = tmp_path / "t.jsonl"
    lines.write_text("")
    with pytest.raises(UsageError, match="Parquet files only"):
        distributed.require_parquet(source((lines, history[1]), checked))
    with pytest.raises(UsageError, match="not a field"):
        Options(segments=("who",)).segments_of(checked)
    with pytest.raises(UsageError, match="budget"):
        Options(budgets=(1.5,))


def test_a_label_that_is_corrected_starts_the_evaluation_again(
    history: tuple[Path, Path], checked: CheckedSpec, versions: list[Ensemble], tmp_path: Path
) -> None:
    """Features depend on the entity of a label, and on labels that a later one replaces."""
    labels = pq.read_table(history[1]).to_pylist()
    frauds = [row for row in labels if row["label"] == "fraud"]
    by_event: dict[str, list[dict[str, Any]]] = {}
    for row in labels:
        by_event.setdefault(row["event_id"], []).append(row)
    replaced = next(rows for rows in by_event.values() if len(rows) > 1 and rows[0]["source"] == "analyst")[0]
    corrected = tmp_path / "labels.parquet"
    shutil.copy(history[1], corrected)
    run((history[0], corrected), checked, versions, tmp_path / "out", replicates=0)
    for row, change in (
        (next(row for row in frauds if row["where"] == "t1"), {"where": "t2"}),
        (replaced, {"labelled_at": replaced["labelled_at"] + 1}),
    ):
        row |= change
        pq.write_table(pa.Table.from_pylist(labels), corrected)
        again = run((history[0], corrected), checked, versions, tmp_path / "out", replicates=0)
        assert again.resumed == 0
        assert again.digests == run((history[0], corrected), checked, versions, tmp_path / "new", replicates=0).digests
        shutil.rmtree(tmp_path / "new")


def test_another_secret_of_hashed_ids_starts_the_evaluation_again(checked: CheckedSpec) -> None:
    text = SPEC_TEXT.replace("who: {type: string}", "who: {type: string, sensitive: true}")
    facts = [facts_of(parse_spec(text, id_key=letter * 32), [], Options()) for letter in "ab"]
    assert facts[0] != facts[1]
    assert "a" * 32 not in str(facts)
    assert facts_of(checked, [], Options()) == facts_of(parse_spec(SPEC_TEXT, id_key="b" * 32), [], Options())
