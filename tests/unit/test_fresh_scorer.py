"""A scorer in a process of its own, from its imports to its first batches, with what only a new process shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXTRAS = ("sklearn", "scipy", "jinja2", "markupsafe", "matplotlib", "lightgbm", "xgboost")
# The scorer's steps before and during its first batches: warm up, load two versions, score, apply, catch up. The spec
# has each kind of feature, and rows that are cut after 16 events.
PROGRAM = """
import json, sys
from pathlib import Path
for name in sys.argv[2:]:
    sys.modules[name] = None
import stream_scorer.app, stream_scorer.cli.run, stream_scorer.cli.replay, stream_scorer.cli.explain
import stream_scorer.kafka.oauth, stream_scorer.monitor.joiner, stream_scorer.quality
imported = dict(sys.modules)
import msgspec._utils
import numpy as np
from numba.core.dispatcher import Dispatcher
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup, Split
from stream_scorer.ensemble.manifest import Input, Isotonic, Platt, Thresholds
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.availability import Availability, State
from stream_scorer.pipeline.enrich import Enrich
from stream_scorer.pipeline.in_flight import InFlight
from stream_scorer.positions import SourcePartition
from stream_scorer.spec import parse_spec
from tests.support.ensembles import TRAINING, logistic
from tests.support.failpoints import Failpoints
from tests.support.rows import MemoryAppliedRows, MemoryServer
from tests.support.stages import CARDS, run

VIEWS = '''
  - {name: spread, entity: customer, windows: [1d, 7d], aggregates: [min, max, std, sum], current: exclude}
  - {name: places, entity: customer, windows: [7d], aggregates: [distinct], of: terminal_id}
  - {name: known, entity: terminal, windows: [1d], delay: 6h, aggregates: [label_count]}
  - {name: far, entity: terminal, windows: [1d], aggregates: [count], where: {channel: {in: [online]}}}

derived:'''

def spec():
    text = CARDS.read_text().replace("row_entries: 128", "row_entries: 16").replace("\\n\\nderived:", VIEWS)
    return parse_spec(text.replace("{pane: 1h}", "{pane: 1h, review_sample: 0.3}"))

def version(name, weight):
    platt, isotonic, inputs = Platt(0.8, -0.1), Isotonic([0.1, 0.5, 0.9], [0.02, 0.3, 0.95]), [Input(impute=0.0)]
    drafts = [
        Draft("a", "dense-json", logistic([weight], -2.0), ["customer.count_1d"], inputs, platt, weight),
        Draft("b", "dense-json", logistic([0.3], -2.0), ["amount_log"], inputs, isotonic, 0.3),
    ]
    outline = Outline(
        "cards", 1, "cards", checked.sha256, checked.feature_hash, checked.features, platt,
        Thresholds("p", 0.3, 0.6), 0.5, TRAINING,
    )
    folder = Path(sys.argv[1]) / name
    compose_ensemble(folder, outline, drafts, np.random.default_rng(1).random((200, len(checked.features))))
    return Ensemble.load(folder, version=name, explain=True)

def compiled():
    loops = {
        f"{loop.py_func.__module__}.{loop.py_func.__qualname__}": loop
        for name, module in list(sys.modules.items()) if name.startswith("stream_scorer.")
        for loop in vars(module).values() if isinstance(loop, Dispatcher)
    }
    return {name: len(loop.signatures) for name, loop in loops.items()}

checked = spec()
engine = FeatureEngine(checked)
stream_scorer.app._warm(engine)
lineup = Lineup((version("1", 0.4), version("2", 0.5)), Split(0.5, "salt"))
before = compiled()
found = {"loops": len(before), "scores": []}
for size in (1, 64):
    store = MemoryAppliedRows(MemoryServer(), sources := [SourcePartition(n, 0) for n in ("transactions", "labels")],
                              Failpoints(), per_call=500)
    store.init(dict.fromkeys(sources, 0), {})
    availability = Availability(Metrics())
    availability.enter(State.READY)
    enrich = Enrich(engine, store, availability, InFlight())
    sink = run(lineup, size, checked=checked, store=store, enrich=enrich, max_explained=5, headers={5: [("a", b"b")]})
    found["scores"].append(len(sink.documents("scores")))
found["topics"] = sorted(sink.records)
found["gained"] = sorted(name for name, number in compiled().items() if number != before.get(name, 0))
found["pandas"] = "pandas" in sys.modules

class New(msgspec.Struct):
    a: int

# Describing a type raises an error from now on.
def describe(_):
    raise RuntimeError

msgspec._utils._get_class_mro_and_typevar_mappings = describe
found["not described"] = []
for name, module in (imported | {"__main__": sys.modules["__main__"]}).items():
    for kind in list(vars(module).values()) if name.startswith(("stream_scorer.", "__main__")) else ():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == name:
            try:
                msgspec.json.Decoder(kind)
            except RuntimeError:
                found["not described"].append(f"{name} {kind.__name__}")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("versions")), *EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_scores_without_the_extras(found: Any) -> None:
    assert found["scores"] == [600, 600]
    assert found["topics"] == ["alerts", "contributions", "lineage", "review-sample", "score-summaries", "scores"]


@pytest.mark.kernels
def test_no_batch_waits_for_the_compiler(found: Any) -> None:
    assert found["loops"] > 50
    assert found["gained"] == []


def test_pandas_is_not_imported(found: Any) -> None:
    """The first batch must not wait for it."""
    assert not found["pandas"]


def test_structs_of_scorer_and_monitor_are_described_after_the_import(found: Any) -> None:
    """What the threads of scorer and monitor decode; see `test_structs.py`."""
    assert found["not described"] == ["__main__ New"]
