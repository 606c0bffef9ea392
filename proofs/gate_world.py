"""The history, the champion and the candidates of the proof `gate`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proofs import kit
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Input, Manifest, NoCalibrator, read_manifest, read_members
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.kafka.topics import Topics
from stream_scorer.replay import sources
from stream_scorer.replay.job import replay
from stream_scorer.replay.pieces import Range
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.export import export
from stream_scorer.simulate.labeller import LabellerConfig
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.dataset import make_training_set, read_history
from stream_scorer.train.export import write_training_table
from stream_scorer.train.recipe import AlertRates, Recipe, TrainingSet
from stream_scorer.train.train import train_ensemble

# The rest of the history is recent traffic.
_TRAINED_SHARE = 0.65
# Enough alerts in every segment for a rate.
_RATES = AlertRates(0.08, 0.01)
LEAKED = "terminal_risk.label_rate_7d"
SKEWED = "customer.count_1d"
_COPIES = 4

RULES = """\
version: 1
leak: {rows: 10000}
skew: {max_share: 0.01, min_scores: 1000}
drift: {max_distance: 0.45, ignore: [hour, is_weekend, is_night]}
latency: {max_ratio: 2}
cost: {max_ratio: 10}
quality:
  - {metric: average_precision, max_loss: 0.12}
fairness:
  - {segment: channel, max_ratio_to_champion: 4, min_rows: 100, min_alerts: 10}
"""


@cache
def cards() -> CheckedSpec:
    """The simulator's spec."""
    return kit.cards()


@dataclass(frozen=True)
class World:
    """Files of the history, the training set and the champion in `folder`; `cut` (epoch ms) begins recent traffic."""

    folder: Path
    cut: int
    data: TrainingSet
    seed: int

    @property
    def transactions(self) -> Path:
        return self.folder / "transactions.parquet"

    @property
    def labels(self) -> Path:
        return self.folder / "labels.parquet"

    @property
    def champion(self) -> Path:
        return self.folder / "champion"

    @property
    def rules(self) -> Path:
        return self.folder / "gate.yaml"

    @property
    def served(self) -> Path:
        """The recorded features of recent traffic."""
        return self.folder / "served" / "lineage.parquet"

    @property
    def bent(self) -> Path:
        """The same, with another value of the feature `SKEWED` in every tenth score."""
        return self.folder / "bent.parquet"


@dataclass(frozen=True)
class Candidate:
    """A candidate, its training set, and what its scorer recorded.

    `refused` names the rules that must refuse it; `follows`, the sections whose rules may refuse it too.
    """

    folder: Path
    training_set: Path
    served: Path
    refused: frozenset[str] = frozenset()
    follows: frozenset[str] = frozenset()


def make_world(folder: Path, n: int, seed: int, *, live: bool) -> World:
    """Simulate `n` transactions, which end about now if they are `live`, and train the champion on the first 65 %."""
    config = SimulationConfig(
        seed=seed, customers=max(n // 60, 100), terminals=max(n // 100, 50), days=None, transactions=n, fraud_rate=0.08
    )
    if live:
        config = config.starting(config.start_to_end_by(SystemClock().now_ms()))
    export(config, folder, labels=LabellerConfig())
    history = read_history(folder / "transactions.parquet", folder / "labels.parquet", cards())
    time = history.transactions.event_time
    cut = int(np.quantile(time, _TRAINED_SHARE))
    labels = np.flatnonzero(history.labels.labelled_at < cut)
    before = replace(
        history,
        transactions=take_transactions(history.transactions, np.flatnonzero(time < cut)),
        labels=take_labels(history.labels, labels),
        ranks=history.ranks[labels],
    )
    world = World(folder, cut, make_training_set(before, cards()), seed)
    _train(world.data, folder / "champion", seed)
    write_training_table(world.data, cards(), folder / "champion.set.parquet")
    world.rules.write_text(RULES)
    return world


def _train(data: TrainingSet, out: Path, seed: int) -> None:
    train_ensemble(data, cards(), out, Recipe(seed, name="cards", alert_rates=_RATES))


def record_served(world: World, ensemble: Path) -> None:
    """Write what a scorer records about recent traffic, correct and bent."""
    topics = Topics()
    source = sources.from_files(
        world.transactions, world.labels, topics, cards(), Range(time_start=world.cut), 4_096, warm=True
    )
    replay(source, cards(), Ensemble.load(ensemble, version="1"), topics, world.served.parent, SystemClock())
    table = pq.read_table(world.served)
    features, place = table["features"].to_pylist(), cards().features.index(SKEWED)
    for row in features[::10]:
        row[place] += 1.0
    at = table.schema.get_field_index("features")
    pq.write_table(table.set_column(at, "features", pa.array(features, table.schema.field(at).type)), world.bent)


def make_candidates(world: World, left_out: Collection[str] = ()) -> dict[str, Candidate]:
    """The candidates by name; `record_served` must have been called."""
    return {name: make(world) for name, make in CANDIDATES.items() if name not in left_out}


def good(world: World) -> Candidate:
    """Trained again with another seed."""
    folder = world.folder / "good"
    _train(world.data, folder, world.seed + 1)
    return Candidate(folder, _set_of(world), world.served)


def leaked(world: World) -> Candidate:
    """One column of its training set contains a part of the label, which is unknown when the transaction arrives."""
    features = world.data.features.copy()
    place = world.data.names.index(LEAKED)
    features[:, place] = np.nan_to_num(features[:, place]) + 0.5 * world.data.label
    return _on_another_set(
        world, "leaked", replace(world.data, features=features), "leak", "quality", "drift", "fairness"
    )


def skewed(world: World) -> Candidate:
    """The good one, after a scorer served another value of a feature that it reads."""
    return Candidate(world.folder / "good", _set_of(world), world.bent, frozenset({"skew"}))


def slow(world: World) -> Candidate:
    """Every member of the champion four times, each with a quarter of its weight: the same scores."""
    manifest = read_manifest(world.champion)
    drafts = [
        replace(draft, name=f"{draft.name}-{copy}", weight=draft.weight / _COPIES)
        for draft in _drafts(world.champion, manifest)
        for copy in range(_COPIES)
    ]
    folder = _compose(world, "slow", drafts)
    return Candidate(folder, _set_of(world), world.served, frozenset({"latency"}))


def worse(world: World) -> Candidate:
    """Trained on labels in random order."""
    label = np.random.default_rng(world.seed).permutation(world.data.label)
    return _on_another_set(
        world, "worse", replace(world.data, label=label), "quality.average_precision", "quality", "fairness"
    )


def biased(world: World) -> Candidate:
    """The champion, with a member that raises the score of one channel and lowers those of the others."""
    manifest = read_manifest(world.champion)
    drafts = _drafts(world.champion, manifest)
    # The code of chip is 0. The log-odds of the member are 5 for chip and -3 for all others.
    member = encode_dense(Dense([Layer([[-8.0]], [5.0], "logistic")]))
    of_chip = Input(low=0.0, high=1.0)
    weight = 0.35 * sum(draft.weight for draft in drafts)
    bias = Draft("bias", "dense-json", member, ["channel_code"], [of_chip], NoCalibrator(), weight)
    folder = _compose(world, "biased", [*drafts, bias])
    rules, follows = frozenset({"fairness.channel.to_champion"}), frozenset({"quality"})
    return Candidate(folder, _set_of(world), world.served, rules, follows)


def drifted(world: World) -> Candidate:
    """The champion, with the profile of traffic in which cards are used four times as often."""
    reference = world.data.features.copy()
    for place, name in enumerate(world.data.names):
        if name.startswith("customer.count"):
            reference[:, place] *= 4.0
    folder = _compose(world, "drifted", _drafts(world.champion, read_manifest(world.champion)), reference)
    return Candidate(folder, _set_of(world), world.served, frozenset({"drift"}))


def altered(world: World) -> Candidate:
    """A member that does not score as it did when it was trained: its calibrator has another slope."""
    folder = _compose(world, "altered", _drafts(world.champion, read_manifest(world.champion)))
    path = folder / "manifest.json"
    document = msgspec.json.decode(path.read_bytes())
    document["members"][0]["calibrator"]["slope"] *= 1.01
    path.write_bytes(msgspec.json.encode(document))
    return Candidate(folder, _set_of(world), world.served, frozenset({"self_test"}))


CANDIDATES: dict[str, Callable[[World], Candidate]] = {
    "good": good,
    "leaked": leaked,
    "skewed": skewed,
    "slow": slow,
    "worse": worse,
    "biased": biased,
    "drifted": drifted,
    "altered": altered,
}


def _on_another_set(world: World, name: str, data: TrainingSet, refused: str, *follows: str) -> Candidate:
    folder, training_set = world.folder / name, world.folder / f"{name}.set.parquet"
    _train(data, folder, world.seed)
    write_training_table(data, cards(), training_set)
    return Candidate(folder, training_set, world.served, frozenset({refused}), frozenset(follows))


def _set_of(world: World) -> Path:
    return world.folder / "champion.set.parquet"


def _drafts(folder: Path, manifest: Manifest) -> list[Draft]:
    return [
        Draft(m.name, m.format, data, m.inputs, m.preprocess, m.calibrator, m.weight)
        for m, data in zip(manifest.members, read_members(folder, manifest), strict=True)
    ]


def _compose(world: World, name: str, drafts: list[Draft], reference: np.ndarray | None = None) -> Path:
    """The champion with other members or another profile."""
    m = read_manifest(world.champion)
    outline = Outline(
        name=m.name, created_at=m.created_at, spec_name=m.spec_name, spec_hash=m.spec_hash,
        feature_hash=m.feature_hash, features=m.features, final_calibrator=m.final_calibrator,
        thresholds=m.thresholds, quorum=m.quorum, training=m.training, combiner=m.combiner, link=m.link,
        incomplete_calibrator=m.incomplete_calibrator,
    )  # fmt: skip
    # The profile of a training is that of its newest rows, see `train_ensemble`.
    newest = world.data.features[int(0.72 * len(world.data.label)) : int(0.86 * len(world.data.label))]
    if reference is not None:
        newest = reference[int(0.72 * len(reference)) : int(0.86 * len(reference))]
    compose_ensemble(world.folder / name, outline, drafts, newest)
    return world.folder / name
