"""as-of: an evaluation depends on the labels known at its label time, not on later labels.

A simulated history with late labels is evaluated as of a time in its middle: with several batch sizes, with every
later label changed and more of them added, and after a `kill -9` in the middle. The digests must be the same. As of the
end of the history, they must differ, and the changed labels count.

BREAK=1: the source ignores the label time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proofs import evaluate_world
from proofs.evaluate_world import load, write_history
from proofs.kit import ROOT, Context, Result, die_with_parent, train_cards
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.evaluation.options import Options

N = 200_000
MIN_LATER, MIN_KNOWN, SMALL = 500, 300, 100_000
PIECES = 8
TIMEOUT_S = 900


def run_proof(context: Context, ensemble: Path, n: int) -> Result:
    """The proof with the ensemble in the folder `ensemble` and `n` transactions."""
    result, history = Result(), context.folder / "history"
    write_history(history, seed=context.seed, transactions=n, fraud_rate=0.03)
    labels = pq.read_table(history / "labels.parquet")
    given = labels.column("labelled_at").to_numpy()
    middle = int(np.median(given))
    changed = _change_later(labels, middle)
    pq.write_table(changed, history / "changed.parquet")
    share = 1.0 if n >= SMALL else n / N
    result.at_least("labels_later", int((given > middle).sum()), MIN_LATER * share)
    result.at_least("labels_known", int((given <= middle).sum()), MIN_KNOWN * share)
    _compare(context, result, load([ensemble]), middle, n)
    _kill(context, result, ensemble, middle, n)
    return result


def _digest(context: Context, versions: list[Ensemble], name: str, as_of: int | None, n: int, rows: int,
               labels: str = "labels.parquet") -> str:  # fmt: skip
    """The digest of one evaluation."""
    options = Options(replicates=0, rows=rows, piece_rows=max(n // PIECES, 1))
    known = None if context.broken else as_of
    found = evaluate_world.run(
        context.folder / "history", versions, context.folder / name, options, as_of=known, labels=labels
    )
    context.say(f"{name}: {found.digests.all[:12]}, {found.labels_later:,} later labels ignored")
    return found.digests.all


def _compare(context: Context, result: Result, versions: list[Ensemble], middle: int, n: int) -> None:
    first = _digest(context, versions, "first", middle, n, 4_096)
    result.figures["digest"] = first
    for rows in (512, 61):
        again = _digest(context, versions, f"rows-{rows}", middle, n, rows)
        result.check(f"the same digests with {rows} transactions per batch", again == first)
    changed = _digest(context, versions, "changed", middle, n, 4_096, "changed.parquet")
    result.check("labels that are changed or added later change nothing", changed == first)
    end = _digest(context, versions, "end", None, n, 4_096)
    result.check("as of a later time, the digests differ", end != first)
    end_changed = _digest(context, versions, "end-changed", None, n, 4_096, "changed.parquet")
    result.check("as of a later time, the changed labels count", end_changed != end)


def _kill(context: Context, result: Result, ensemble: Path, middle: int, n: int) -> None:
    """`kill -9` once two pieces are complete, then run again."""
    out = context.folder / "killed"
    as_of = 0 if context.broken else middle
    command = [sys.executable, "-m", "proofs.evaluate_world", str(context.folder / "history"), str(ensemble), str(out),
               str(max(n // PIECES, 1)), str(as_of)]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(die_with_parent(command), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and not (out / "piece-000002.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    alive = process.poll() is None
    process.kill()
    process.wait()
    result.check("the evaluation was killed while it ran", alive)
    done = subprocess.run(
        die_with_parent(command), cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    found = json.loads(done.stdout) if done.returncode == 0 else {"digest": done.stderr[-300:], "resumed": 0}
    result.at_least("resumed", found["resumed"], max(n // PIECES, 1))
    result.check("after the kill: the same digests", found["digest"] == result.figures["digest"])


def _change_later(labels: pa.Table, middle: int) -> pa.Table:
    """Invert every label after `middle`, and add about half of them again, a millisecond later."""
    rows = labels.to_pylist()
    out = []
    for place, row in enumerate(rows):
        if row["labelled_at"] <= middle:
            out.append(row)
            continue
        out.append(row | {"label": "genuine" if row["label"] == "fraud" else "fraud"})
        if place % 2:
            out.append(row | {"labelled_at": row["labelled_at"] + 1, "source": "chargeback"})
    return pa.Table.from_pylist(sorted(out, key=lambda row: row["labelled_at"]), schema=labels.schema)


def run(context: Context) -> Result:
    """See the module. `n` transactions."""
    train_cards(context.folder, seed=context.seed, transactions=60_000)
    return run_proof(context, context.folder / "ensemble", context.n or N)
