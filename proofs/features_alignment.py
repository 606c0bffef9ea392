"""features-alignment: a backlog drains side by side in event time, and terminals are not under-counted.

One scorer scores a backlog of four partitions with weeks of event time. The counts of terminals in each score are
compared with plain counts of the log: none may be higher, and hardly anything may be missing. `features skew` finds the
features of customers exact. A second run, with a scorer that scores records in fetch order, shows the difference.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from proofs.kit import (
    CARDS_SPEC,
    ROOT,
    Context,
    Result,
    Scorer,
    cards,
    die_with_parent,
    publish,
    read_lineage,
    read_topic,
    services,
    train_cards,
    wait_drained,
)
from stream_scorer.clock import SystemClock
from stream_scorer.features.plan import PANES
from stream_scorer.kafka.topics import Topics
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.stack import StackAddresses

N = 60_000
DAY_MS = 24 * 3_600_000
WINDOWS_MS = {"terminal.count_1d": DAY_MS, "terminal.count_7d": 7 * DAY_MS}
# The share of the log's counts that may be missing; without alignment, the factor and the share that must be.
MAX_MISSING, TIMES_WITHOUT, MIN_MISSING_WITHOUT = 0.02, 5.0, 0.05


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
            counts = _counts(at)
        result.figures[f"{name}_scores"] = report["scores"]
        result.check(f"{name}: every score is compared", report["scores"] == n)
        result.check(f"{name}: no count is too high", all(found.too_high == 0 for found in counts.values()))
        result.check(f"{name}: every score has counts", all(found.rows == n for found in counts.values()))
        missing[name] = {feature: found.missing / found.by_log for feature, found in counts.items()}
        result.figures[f"{name}_share_missing"] = {f: round(share, 4) for f, share in missing[name].items()}
        own = [f["name"] for f in report["features"] if f["different"] and f["name"].startswith("customer")]
        result.check(f"{name}: customers' features are exact", not own)
        context.say(f"{name}: missing {result.figures[f'{name}_share_missing']}")
    for feature in WINDOWS_MS:
        result.check(f"{feature} lacks at most {MAX_MISSING:.0%}", missing["aligned"][feature] <= MAX_MISSING)
        result.check(
            f"{feature} lacks {TIMES_WITHOUT:.0f} times as much without",
            missing["as_fetched"][feature] >= max(TIMES_WITHOUT * missing["aligned"][feature], MIN_MISSING_WITHOUT),
        )
    return result


@dataclass(slots=True)
class Counts:
    """The counts of one feature of terminals, over all scores.

    Attributes:
        rows: scores with the feature. by_log: the sum of the counts of the log. too_high: scores with a higher count.
        missing: by how much the counts of the scores are lower, beyond what panes may leave out.
    """

    rows: int = 0
    by_log: int = 0
    too_high: int = 0
    missing: int = 0


def _counts(at: StackAddresses) -> dict[str, Counts]:
    """The counts that scores were made from, compared with plain counts of the log."""
    bootstrap, checked = str(at.kafka), cards()
    limit = checked.spec.limits.row_entries
    inputs = read_topic(bootstrap, Topics().transactions)
    document = msgspec.json.Decoder().decode
    event_of: dict[tuple[int, int], tuple[str, int]] = {}
    times: dict[str, Any] = defaultdict(list)
    for partition, offset, value in zip(inputs.partition, inputs.offset, inputs.value, strict=True):
        record = document(value or b"")
        event_of[partition, offset] = record["terminal_id"], record["event_time"]
        times[record["terminal_id"]].append(record["event_time"])
    times = {terminal: np.sort(np.array(each)) for terminal, each in times.items()}
    out = {feature: Counts() for feature in WINDOWS_MS}
    columns = {feature: checked.features.index(feature) for feature in WINDOWS_MS}
    for row in read_lineage(bootstrap, Topics()):
        terminal, now = event_of[row.source.partition, row.source.offset]
        for feature, window in WINDOWS_MS.items():
            recorded, found, log = row.features[columns[feature]], out[feature], times[terminal]
            if recorded is None:
                continue
            width = -(-window // PANES)
            edge = (now - window) // width * width + width - 1  # the end of the pane in which the window begins
            low, after, high = np.searchsorted(log, (now - window, min(edge, now), now), "right").tolist()
            # The oldest events of a long row count by panes (ADR 0011).
            by_panes = max(min(after, high - limit) - low, 0)
            found.rows += 1
            found.by_log += high - low
            found.too_high += recorded > high - low
            found.missing += max(high - low - by_panes - int(recorded), 0)
    return out


def _skew(context: Context, at: StackAddresses) -> Any:
    command = [sys.executable, "-m", "stream_scorer.cli.main", "features", "skew", "--json", "--tolerance", "1"]
    command += ["--bootstrap", str(at.kafka), "--spec", str(CARDS_SPEC)]
    command += ["--ensemble", str(context.folder / "ensemble")]
    done = subprocess.run(die_with_parent(command), capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return json.loads(done.stdout)
