"""What proofs of the evaluation share: a simulated history as Parquet, and one evaluation, also in its own process."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from proofs.kit import cards
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.evaluation.job import evaluate
from stream_scorer.evaluation.options import Options
from stream_scorer.evaluation.result import Evaluation
from stream_scorer.evaluation.sources import from_files
from stream_scorer.kafka.topics import Topics
from stream_scorer.replay.pieces import Range
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.export import export
from stream_scorer.simulate.labeller import LabellerConfig

CUSTOMERS = 2_500


def write_history(folder: Path, *, seed: int, transactions: int, fraud_rate: float = 0.01) -> None:
    """``transactions.parquet`` and ``labels.parquet`` in `folder`."""
    config = SimulationConfig(
        seed=seed, customers=CUSTOMERS, days=None, transactions=transactions, fraud_rate=fraud_rate
    )
    export(config, folder, labels=LabellerConfig(review_probability=0.02))


def load(paths: Sequence[Path]) -> list[Ensemble]:
    """The versions in `paths`, numbered from 1."""
    return [Ensemble.load(path, version=str(number)) for number, path in enumerate(paths, start=1)]


def run(
    history: Path, versions: Sequence[Ensemble], out: Path, options: Options, *, as_of: int | None = None,
    labels: str = "labels.parquet",
) -> Evaluation:  # fmt: skip
    """Evaluate `versions` on the history in the folder `history`."""
    checked = cards()
    source = from_files(
        history / "transactions.parquet", history / labels, Topics(), checked, Range(), as_of, warm=False
    )
    return evaluate(source, checked, versions, options, out, SystemClock())


def main() -> None:
    """An evaluation in a process of its own: ``HISTORY VERSION OUT PIECE_ROWS AS_OF``; prints the result as JSON."""
    history, version, out, piece_rows, as_of = sys.argv[1:]
    options = Options(replicates=0, piece_rows=int(piece_rows))
    result = run(Path(history), load([Path(version)]), Path(out), options, as_of=int(as_of) or None)
    print(json.dumps({"digest": result.digests.all, "resumed": result.resumed}))


if __name__ == "__main__":
    main()
