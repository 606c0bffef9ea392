"""What the proofs of the evaluation share: a simulated history as Parquet, versions of an ensemble, one evaluation."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from proofs.kit import cards
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import read_manifest, read_members
from stream_scorer.ensemble.members.dense_json import Dense, encode_dense
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
# The member that differs between the versions. Of five, its cost is the second lowest.
CHANGED = "neural"


class CpuClock(SystemClock):
    """Seconds of CPU time of this process: on a busy machine, elapsed time measures the others."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.process_time()


def write_history(folder: Path, *, seed: int, transactions: int, fraud_rate: float = 0.01) -> None:
    """``transactions.parquet`` and ``labels.parquet`` in `folder`."""
    config = SimulationConfig(
        seed=seed, customers=CUSTOMERS, days=None, transactions=transactions, fraud_rate=fraud_rate
    )
    export(config, folder, labels=LabellerConfig(review_probability=0.02))


def write_versions(folder: Path, trained: Path, count: int) -> list[Path]:
    """`trained` and ``count - 1`` versions that differ in one of its members, below `folder`."""
    manifest = read_manifest(trained)
    data = read_members(trained, manifest)
    rows = np.array(manifest.self_test.features, np.float64)
    outline = Outline(
        name=manifest.name, created_at=manifest.created_at, spec_name=manifest.spec_name, spec_hash=manifest.spec_hash,
        feature_hash=manifest.feature_hash, features=manifest.features, final_calibrator=manifest.final_calibrator,
        thresholds=manifest.thresholds, quorum=manifest.quorum, training=manifest.training, combiner=manifest.combiner,
        link=manifest.link, incomplete_calibrator=manifest.incomplete_calibrator,
    )  # fmt: skip
    paths = [trained]
    for version in range(2, count + 1):
        drafts = [
            Draft(
                m.name, m.format, _shifted(blob, 0.05 * version) if m.name == CHANGED else blob, m.inputs, m.preprocess,
                m.calibrator, m.weight,
            )
            for m, blob in zip(manifest.members, data, strict=True)
        ]  # fmt: skip
        paths.append(folder / str(version))
        compose_ensemble(paths[-1], outline, drafts, rows)
    return paths


def _shifted(data: bytes, by: float) -> bytes:
    """A dense member whose output is shifted on its scale."""
    model = msgspec.json.decode(data, type=Dense)
    last = model.layers[-1]
    layer = msgspec.structs.replace(last, bias=[bias + by for bias in last.bias])
    return encode_dense(msgspec.structs.replace(model, layers=[*model.layers[:-1], layer]))


def load(paths: Sequence[Path]) -> list[Ensemble]:
    """The versions in `paths`, numbered from 1."""
    return [Ensemble.load(path, version=str(number)) for number, path in enumerate(paths, start=1)]


def run(
    history: Path, versions: Sequence[Ensemble], out: Path, options: Options, *, as_of: int | None = None,
    labels: str = "labels.parquet", clock: SystemClock | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate `versions` on the history in the folder `history`."""
    checked = cards()
    source = from_files(
        history / "transactions.parquet", history / labels, Topics(), checked, Range(), as_of, warm=False
    )
    return evaluate(source, checked, versions, options, out, clock or SystemClock())


def main() -> None:
    """An evaluation in a process of its own: ``HISTORY VERSION OUT PIECE_ROWS AS_OF``; prints the result as JSON."""
    history, version, out, piece_rows, as_of = sys.argv[1:]
    options = Options(replicates=0, piece_rows=int(piece_rows))
    result = run(Path(history), load([Path(version)]), Path(out), options, as_of=int(as_of) or None)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line.split()[1] for line in status if line.startswith("VmHWM")))
    print(json.dumps({"digest": result.digests.all, "resumed": result.resumed, "peak_kb": peak}))


if __name__ == "__main__":
    main()
