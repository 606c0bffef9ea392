"""The page docs/own-models.md without services: its export, the notebook and its composition, on a small history."""

from __future__ import annotations

import json
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from proofs.own_model import documented_commands
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.cli.main import cli
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.export import export
from stream_scorer.simulate.labeller import LabellerConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "own_models"
# As many days as the page simulates, with more fraud, so that few rows have enough.
CONFIG = SimulationConfig(seed=1, customers=300, days=None, transactions=9_000, fraud_rate=0.05)


def run_notebook() -> None:
    """Run the code cells of the notebook one after another, as Jupyter does."""
    notebook = json.loads((EXAMPLES / "own_models.ipynb").read_text())
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "own_models.ipynb", "exec"), names)


def test_the_page_leads_from_a_history_to_an_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAM_SCORER_SCORER_SPEC", str(CARDS_SPEC))
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    export(CONFIG, tmp_path / "history", labels=LabellerConfig())
    document = yaml.safe_load(Path("own.yaml").read_text())
    if not find_spec("catboost"):  # it is in the environment of the proof only
        document["members"] = document["members"][:2]
    Path("own.yaml").write_text(yaml.safe_dump(document))
    ran = []
    for command in map(shlex.split, documented_commands()):
        if command[-1] == "train_models.py":
            run_notebook()
        elif command[1:3] in (["features", "export"], ["ensemble", "compose"]):
            done = CliRunner().invoke(cli, [*command[1:], *(["--json"] if "compose" in command else [])])
            assert done.exit_code == 0, (command, done.output, done.exception)
            ran.append(done.stdout)
    report = json.loads(ran[1])
    assert [member["name"] for member in report["members"][:2]] == ["pipeline", "boosted"]
    compared = {a["source"]: a["difference"] for member in report["members"] for a in member["agreements"]}
    assert "expected scores" in compared
    assert max(compared.values()) < 1e-5
    ensemble = Ensemble.load(Path("own"), version="1")
    test = ensemble.manifest.self_test
    rows = np.array(test.features, dtype=np.float64)
    assert np.allclose(ensemble.score(rows).score, np.array(test.score, dtype=np.float64), atol=1e-9)
    assert ensemble.manifest.training.metrics["ensemble"]["roc_auc"] > 0.7
