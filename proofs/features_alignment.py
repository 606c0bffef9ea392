"""features-alignment: a backlog drains side by side in event time, and terminals are not under-counted.

A backlog of four partitions, weeks of event time, is scored by one scorer; `features skew` then holds what the scores
were made from to the log. The same again by a scorer that hands records on as they are fetched shows the difference.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from proofs.kit import (
    CARDS_SPEC,
    ROOT,
    Context,
    Result,
    Scorer,
    die_with_parent,
    publish,
    services,
    train_cards,
    wait_drained,
)
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import Topics
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.stack import StackAddresses

N = 60_000
FEATURES = ("terminal.count_1d", "terminal.count_7d")
# Of what the log has, this much may be missing on average; without alignment it is many times that.
MAX_MISSING, TIMES_WITHOUT = 0.02, 5.0


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions."""
    n = context.n or N
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    config = SimulationConfig(
        seed=context.seed, customers=n // 40, terminals=max(n // 1_000, 10), days=None, transactions=n
    )
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
    missing: dict[str, dict[str, float]] = {}
    for name, sabotage in (("aligned", "unaligned" if context.broken else None), ("as_fetched", "unaligned")):
        with services("kafka", "redis", partitions=4) as (_stack, at):
            publish(str(at.kafka), Topics().transactions, keys, values)
            scorer = Scorer(context.folder, at, instance=name, ensemble=context.folder / "ensemble", sabotage=sabotage)
            scorer.start()
            try:
                wait_drained(str(at.kafka), [scorer], timeout_s=180)
                result.check(f"{name}: the scorer ends with exit 0", scorer.stop() == 0)
            finally:
                scorer.close()
            report = _skew(context, at)
        result.figures[f"{name}_scores"] = report["scores"]
        result.check(f"{name}: every score is compared", report["scores"] == n)
        told = {f["name"]: f for f in report["features"]}
        missing[name] = {f: 1 - told[f]["mean_recorded"] / told[f]["mean_recomputed"] for f in FEATURES}
        result.figures[f"{name}_share_missing"] = {f: round(share, 4) for f, share in missing[name].items()}
        own = [f["name"] for f in report["features"] if f["different"] and f["name"].startswith("customer")]
        result.check(f"{name}: customers' features are exact", not own)
        context.say(f"{name}: missing {result.figures[f'{name}_share_missing']}")
    for feature in FEATURES:
        result.check(f"{feature} lacks at most {MAX_MISSING:.0%}", missing["aligned"][feature] <= MAX_MISSING)
        result.check(
            f"{feature} lacks {TIMES_WITHOUT:.0f} times as much without",
            missing["as_fetched"][feature] >= TIMES_WITHOUT * missing["aligned"][feature],
        )
    return result


def _skew(context: Context, at: StackAddresses) -> Any:
    command = [sys.executable, "-m", "stream_scorer.cli.main", "features", "skew", "--json", "--tolerance", "1"]
    command += ["--bootstrap", str(at.kafka), "--spec", str(CARDS_SPEC)]
    command += ["--ensemble", str(context.folder / "ensemble")]
    done = subprocess.run(die_with_parent(command), capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return json.loads(done.stdout)
