"""versions: five versions that share four of five members cost at most 1.5 times one version, in one pass.

Cost is the CPU time of the whole evaluation with all figures and intervals, in turns in one process; the median of the
turns' ratios decides. The fifth member is `neural`, whose bare prediction costs less than that of each tree member.
Scores and decisions of every version must equal those of a pass with this version alone.

BREAK=1: no member is shared.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq

from proofs import evaluate_world
from proofs.evaluate_world import CHANGED, CpuClock, load, write_history, write_versions
from proofs.kit import Context, Result, train_cards
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.evaluation.options import Options
from stream_scorer.evaluation.result import Evaluation

N, VERSIONS, TURNS = 300_000, 5, 7
MAX_RATIO = 1.5
# A small run only compares scores: the fixed costs of the figures outweigh the rest.
MIN_TIMED = 50_000
COMPARED = 20_000


def run(context: Context) -> Result:
    """See the module. `n` transactions."""
    train_cards(context.folder, seed=context.seed, transactions=60_000)
    return run_proof(context, context.folder / "ensemble", context.n or N)


def run_proof(context: Context, ensemble: Path, n: int) -> Result:
    """The proof with the ensemble in the folder `ensemble` and `n` transactions."""
    result = Result()
    versions = load(write_versions(context.folder / "versions", ensemble, VERSIONS))
    if context.broken:
        for version in versions:
            version.member_keys = [f"{key}-{version.version}" for key in version.member_keys]
    _same_scores(context, result, versions, min(n, COMPARED))
    if n >= MIN_TIMED:
        _cost(context, result, versions, n)
    return result


def _same_scores(context: Context, result: Result, versions: list[Ensemble], n: int) -> None:
    history = context.folder / "small"
    write_history(history, seed=context.seed, transactions=n, fraud_rate=0.03)
    together = _evaluate(context, history, versions)
    members = len(together.members)
    result.figures["distinct_members"] = members
    result.check("four of five members are shared", members == 4 + VERSIONS)
    pieces = _pieces(Path(together.out))
    different, compared = 0, 0
    for index, version in enumerate(versions):
        alone = _pieces(Path(_evaluate(context, history, [version], "alone").out))
        for name in ("s", "d"):
            one, two = pieces[f"{name}{index}"], alone[f"{name}0"]
            compared += len(one)
            different += int((~((one == two) | (np.isnan(one) & np.isnan(two)))).sum())
    result.figures["different"] = different
    result.at_least("scores_and_decisions_compared", compared, 2 * VERSIONS * n)
    result.check("scores and decisions equal those of single passes", different == 0)
    distinct = len(np.unique(np.stack([pieces[f"s{i}"] for i in range(VERSIONS)]), axis=0))
    result.check("the versions differ", distinct == VERSIONS)


def _cost(context: Context, result: Result, versions: list[Ensemble], n: int) -> None:
    history = context.folder / "large"
    write_history(history, seed=context.seed + 1, transactions=n)
    turns = [(_evaluate(context, history, versions[:1]), _evaluate(context, history, versions)) for _ in range(TURNS)]
    ratios = [five.seconds["total"] / one.seconds["total"] for one, five in turns]
    one, five = turns[0]
    result.figures |= {
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(median(ratios), 3),
        "changed_member": CHANGED,
        "one_us_per_transaction": _per_transaction(one),
        "five_us_per_transaction": _per_transaction(five),
    }
    result.check(f"five versions cost at most {MAX_RATIO} times one version", median(ratios) <= MAX_RATIO)


def _evaluate(context: Context, history: Path, versions: list[Ensemble], name: str = "out") -> Evaluation:
    out = context.folder / name
    shutil.rmtree(out, ignore_errors=True)
    found = evaluate_world.run(history, versions, out, Options(), clock=CpuClock())
    context.say(f"{len(versions)} versions: {found.seconds['total']:.1f} s of CPU for {found.transactions:,}")
    return found


def _per_transaction(found: Evaluation) -> dict[str, float]:
    return {name: round(1e6 * seconds / found.transactions, 2) for name, seconds in found.seconds.items()}


def _pieces(folder: Path) -> dict[str, np.ndarray]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("piece-*.parquet"))]
    names = [name for name in tables[0].column_names if name[0] in "sd" and name[1:].isdigit()]
    return {name: np.concatenate([table.column(name).to_numpy() for table in tables]) for name in names}
