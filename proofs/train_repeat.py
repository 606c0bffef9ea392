"""train-repeat: the same history, specs and seed give the same ensemble, for any number of cores and jobs.

`stream-scorer train` runs as a process of its own: without a training spec, with the shipped one, and with one that has
class weights, sampling, a second seed and stacking; each on one core with one job, and on all cores with other numbers
of jobs. Members, manifest and reference profile must be equal to the last byte. A run with another seed must differ,
otherwise the equality would show nothing. `SOURCE_DATE_EPOCH` fixes the time in the manifest.

BREAK=1 draws the seed of one member anew in each run. `N` is the number of transactions.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from proofs.kit import CARDS_SPEC, ROOT, Context, Result, die_with_parent
from stream_scorer.ensemble.manifest import read_manifest
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.export import export
from stream_scorer.simulate.labeller import LabellerConfig

N = 9_000
MIN_ROWS, MIN_FRAUDS, MIN_MEMBERS = 3_000, 100, 5
TIMEOUT_S = 1_200
BUILD_TIME = "1700000000"
ODD = """
seed: {seed}
folds: {{count: 2}}
members:
  - {{name: boosted, algorithm: lightgbm, class_weight: balanced, parameters: {{trees: 40, bagging_fraction: 0.7, bagging_freq: 1}}}}
  - {{name: sampled, algorithm: xgboost, sampling: {{genuine: 0.3}}, parameters: {{trees: 40, subsample: 0.8}}}}
  - {{name: forest, algorithm: lightgbm-forest, features: network, seed: 11, calibrator: beta}}
  - {{name: linear, algorithm: logistic-regression, features: [customer.*, amount_log], calibrator: isotonic}}
  - {{name: network, algorithm: neural-network, parameters: {{epochs: 4}}}}
combination: {{method: stacking}}
thresholds: {{review_rate: 0.02, block_rate: 0.005}}
"""  # noqa: E501


def run(context: Context) -> Result:
    """See the module."""
    result = Result()
    folder = context.folder
    n = context.n or N
    # A higher fraud rate than in reality and few customers, so that few rows have enough days and frauds for all folds.
    config = SimulationConfig(seed=context.seed, customers=max(n // 30, 1), days=None, transactions=n, fraud_rate=0.04)
    export(config, folder, labels=LabellerConfig())
    (folder / "odd.yaml").write_text(ODD.format(seed=context.seed))
    (folder / "other.yaml").write_text(ODD.format(seed=context.seed + 1))
    cores = sorted(os.sched_getaffinity(0))
    kinds = {
        "plain": (["--seed", str(context.seed)], [[], []]),
        "default": (["--training", "default"], [["--jobs", "1"], ["--jobs", "2"]]),
        "odd": (["--training", str(folder / "odd.yaml")], [["--jobs", "1"], ["--jobs", "4"]]),
    }
    for name, (flags, repeats) in kinds.items():
        found = []
        for number, more in enumerate(repeats):
            # The first on one core, the others on all.
            used = cores[:1] if number == 0 else cores
            found.append(_train(context, folder / f"{name}-{number}", [*flags, *more], used))
            context.say(f"{name}: {' '.join(more) or 'default jobs'} on {len(used)} cores")
        for number, digests in enumerate(found[1:], 1):
            different = sorted(key for key in digests.keys() | found[0].keys() if digests.get(key) != found[0].get(key))
            result.figures[f"{name}_{number}_different"] = different
            result.check(f"{name}: run {number} equals the run on one core", not different)
    other = _train(context, folder / "other", ["--training", str(folder / "other.yaml")], cores)
    first = _digests(folder / "odd-0")
    result.check("another seed gives other members", any(other[name] != first[name] for name in other if "." in name))
    trained = read_manifest(folder / "odd-0")
    result.figures["cores"] = len(cores)
    result.at_least("rows", trained.training.rows, MIN_ROWS)
    result.at_least("frauds", trained.training.positives, MIN_FRAUDS)
    result.at_least("members", len(trained.members), MIN_MEMBERS)
    return result


def _train(context: Context, out: Path, flags: Sequence[str], cores: Sequence[int]) -> dict[str, str]:
    """Train in a process that may use `cores`; digests by file, and of the profile."""
    module = ["proofs.sabotage", "unseeded"] if context.broken else ["stream_scorer.cli.main"]
    command = [sys.executable, "-m", *module, "train", "--spec", str(CARDS_SPEC), "--out", str(out), "--json", *flags]
    for name in ("transactions", "labels"):
        command += [f"--{name}", str(context.folder / f"{name}.parquet")]
    done = subprocess.run(
        die_with_parent(command),
        cwd=ROOT,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": BUILD_TIME},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"train ended with {done.returncode}: {done.stderr[-2_000:]}"
    json.loads(done.stdout)
    return _digests(out)


def _digests(folder: Path) -> dict[str, str]:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    profile = json.loads((folder / "manifest.json").read_bytes())["reference_profile"]
    return found | {"profile": hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).hexdigest()}
