"""monitor-bench: one worker of each part of the monitor keeps up with a scorer, in flat memory, and counting is cheap.

A stretch of simulated traffic (100,000 transactions per day, half of it with a version on probation, analysts and
chargebacks) goes through the scorer's stages in batches of the default size, and what they write goes to the parts of
the monitor at once, in turns: label joiner (SQLite), windows (Redis), the detector of drift events, watch, incidents.
For each of them the CPU time per transaction is compared with that of the scorer, in the same run; that of Redis counts
for the windows. All parts in one process are a figure and decide nothing. The scorer works in memory, without Kafka and
Redis. Both would slow it down, so a real one leaves the monitor more time. Summaries take at most 5 % of the scorer's
time while one version serves; during a probation they also compare the two versions.

Then the recorded traffic is repeated, with other days, cards, event ids and versions, until it is worth `N`
transactions. Resident memory in the second half, and the cost per transaction in the last quarter, must be those of the
second quarter. A version is promoted every second day.

Kafka's clients and Faust are not measured on either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from proofs.kit import Context, Result, cards, services, train_cards
from proofs.monitor_feed import FIRST, SECOND, MemoryScorer, Output, Repetition, scattered_ids
from proofs.monitor_parts import MonitorParts
from proofs.updates import Fault, Version
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.simulate.config import DAY_MS, SimulationConfig
from stream_scorer.simulate.generate import generate
from stream_scorer.state.client import connect

N, BROKEN_N = 10_000_000, 60_000
# The default of `scorer.batch`.
BATCH = 1_024
PER_DAY, RECORDED_DAYS = 100_000, 2
MAX_SHARE = 0.05
# Growth of resident memory in the second half, MB, and of the cost per transaction from the second to the last quarter.
MAX_GROWTH_MB, MAX_COST_RATIO = 16.0, 1.5
# Samples of both.
SAMPLES = 400
REDIS_TIMEOUT_S = 60.0


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions that the summaries are worth."""
    n = context.n or (BROKEN_N if context.broken else N)
    result, checked = Result(), cards()
    train_cards(context.folder, seed=context.seed)
    rows = min(RECORDED_DAYS * PER_DAY, n // 2)
    scorer = MemoryScorer(checked, seed=context.seed)
    with services("redis") as (_stack, at):
        client = connect(str(at.redis), timeout_s=REDIS_TIMEOUT_S)
        parts = MonitorParts(client, checked, context.folder, broken=context.broken)
        recorded = []
        for output in _scored(scorer, context, rows):
            recorded.append(output)
            parts.feed(output)
        _judge_rates(context, result, scorer, parts)
        _repeat(context, result, parts, scorer, recorded, n)
        parts.close()
        client.close()
    result.at_least("labels_joined", parts.outcomes, min(n // 1_000, 1_000))
    result.at_least("window_figures", parts.windows.figures, min(n // 100, 10_000))
    return result


def _scored(scorer: MemoryScorer, context: Context, rows: int) -> Iterator[Output]:
    """The outputs of the scorer: first one version serves, then another one on probation, with one member changed."""
    config = SimulationConfig(
        seed=context.seed, customers=round(PER_DAY / 1.5), terminals=2_000, days=None, transactions=rows
    )
    made = replace(generate(config), event_id=scattered_ids(rows))
    first = Version.read(context.folder / "ensemble")
    second = Fault("weight", first.manifest.member_names[0], None, 1.1).apply(first)
    old, new = first.ensemble(FIRST), second.ensemble(SECOND)
    scorer.serve(Lineup((old,), control_offset=0))
    probation = False
    for start in range(0, rows, BATCH):
        if not probation and start >= rows // 2:
            probation = True
            scorer.serve(Lineup((new, old), control_offset=1, last_good=1))
        yield scorer.run(made.slice(start, start + BATCH), probation=probation)


def _judge_rates(context: Context, result: Result, scorer: MemoryScorer, parts: MonitorParts) -> None:
    """Compare the costs of the parts with those of the scorer, on the recorded traffic."""
    costs = parts.costs
    redis_us = 1e6 * parts.windows.redis / max(costs["windows"].rows, 1)
    whole = {name: cost.cpu_us for name, cost in costs.items()}
    whole["windows"] += redis_us
    result.figures |= {
        "recorded_transactions": scorer.cost.rows,
        "scorer_us": round(scorer.cost.cpu_us, 2),
        "part_us": {name: round(us, 2) for name, us in whole.items()},
        "redis_us": round(redis_us, 2),
        "elapsed_us": {name: round(cost.us, 2) for name, cost in ({"scorer": scorer.cost} | costs).items()},
    }
    # The windows call the detector of drift events, whose cost is part of theirs.
    together = sum(us for name, us in whole.items() if name != "drift")
    rates = {name: round(scorer.cost.cpu_us / us, 2) for name, us in whole.items()}
    result.figures["times_the_scorer"] = rates | {"together": round(scorer.cost.cpu_us / together, 2)}
    for name, times in result.figures["times_the_scorer"].items():
        context.say(f"{name}: {times} times as fast as the scorer")
        if name != "together":
            result.check(f"one worker of the part {name} keeps up with the scorer", times >= 1.0, cost=True)
    share = scorer.summarise_steady.cpu_us / scorer.steady.cpu_us
    result.figures |= {
        "summarise_us": round(scorer.summarise_steady.cpu_us, 2),
        "summarise_share": round(share, 4),
        "summarise_share_with_probation": round(scorer.summarise.cpu_us / scorer.cost.cpu_us, 4),
    }
    result.check(f"counting takes at most {MAX_SHARE:.0%} of the scorer's time", share <= MAX_SHARE, cost=True)


def _repeat(
    context: Context, result: Result, parts: MonitorParts, scorer: MemoryScorer, recorded: Sequence[Output], n: int
) -> None:
    """Repeat the recorded traffic until it is worth `n` transactions, and judge memory and cost."""
    rows = sum(output.rows for output in recorded)
    last_day = max(output.event_time for output in recorded) // DAY_MS
    days = last_day - min(output.event_time for output in recorded) // DAY_MS + 1
    memory, costs, done, fed = [_resident_mb()], [parts.cpu_s], 0, 0
    repetitions = -(-n // rows)
    every = max(repetitions * len(recorded) // SAMPLES, 1)
    for number in range(1, repetitions + 1):
        for output in Repetition(number, number * days * DAY_MS, scorer.offsets).outputs(recorded):
            parts.feed(output, number)
            done, fed = done + output.rows, fed + 1
            if fed % every == 0:
                memory.append(_resident_mb())
                costs.append(parts.cpu_s)
        context.say(f"{done:,} transactions: {memory[-1]:.0f} MB")
    quarters = [list(part) for part in np.array_split(np.array(memory), 4)]
    growth = float(np.median(quarters[3]) - np.median(quarters[1]))
    steps = [float(part.mean()) for part in np.array_split(np.diff(costs), 4)]
    result.figures |= {
        "memory_mb_by_quarter": [round(float(np.median(quarter)), 1) for quarter in quarters],
        "growth_mb": round(growth, 1),
        "cost_by_quarter": [round(step / steps[1], 2) for step in steps],
        "redis_mb": parts.redis_mb,
    }
    result.at_least("transactions", done, n)
    # The joiner keeps those of the last four days.
    result.at_least("stored_by_joiner", parts.joiner.rows, rows // 2)
    result.check(f"memory grows by at most {MAX_GROWTH_MB:.0f} MB in the second half", growth <= MAX_GROWTH_MB)
    result.check(
        f"the cost grows by at most {MAX_COST_RATIO - 1:.0%} in the second half", steps[3] <= MAX_COST_RATIO * steps[1]
    )


def _resident_mb() -> float:
    """Memory of its own, without pages of files, which the kernel drops and reads again as it likes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1_024
