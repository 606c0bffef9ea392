"""features-hotkey: a terminal with a tenth of all traffic costs little more, stays bounded, and errs within the bound.

A million transactions through engine and Redis, uniform over the terminals and with every tenth on one of them, in
turns so that the machine's moods fall on both; 256 a batch, one batch in flight. Cost is CPU time of the scorer's side
and of Redis. The hot terminal's counts are held to a plain count of the log, and to what the panes at the edges of the
windows hold.
"""

from __future__ import annotations

from statistics import median

import numpy as np
from numpy.typing import NDArray

from proofs.feature_path import HOUR_MS, START_MS, K, Path, made, path_spec
from proofs.kit import Context, Result, services
from stream_scorer.features.panes import longest_unfolded
from stream_scorer.features.plan import PANES
from stream_scorer.state.row_format import ENTRY_BYTES

N, TURNS = 1_000_000, 10
CUSTOMERS, TERMINALS = 20_000, 5_000
HOT_SHARE = 0.1
DAYS = 20
MAX_TIMES = 1.5
SAMPLED = 2_000
WINDOWS = {"1h": HOUR_MS, "1d": 24 * HOUR_MS, "7d": 7 * 24 * HOUR_MS}


def run(context: Context) -> Result:
    """See the module. `n` transactions of each kind."""
    n = context.n or N
    result = Result()
    if context.broken:
        _break()
    checked = path_spec()
    rng = np.random.default_rng(context.seed)
    at = START_MS + np.sort(rng.integers(0, DAYS * 24 * HOUR_MS, n))
    # One in fifty comes late by up to an hour.
    at -= np.where(rng.random(n) < 0.02, rng.integers(0, HOUR_MS, n), 0)
    customer = rng.integers(0, CUSTOMERS, n)
    terminal = rng.integers(1, TERMINALS, n)
    hot = rng.random(n) < HOT_SHARE
    names = [f.name for f in checked.view_features]
    columns = [names.index(f"seen.count_{w}") for w in WINDOWS]
    with services("redis") as (_stack, addresses):
        paths = {kind: Path(str(addresses.redis), checked, kind) for kind in ("uniform", "hot")}
        cost: dict[str, list[float]] = {kind: [] for kind in paths}
        got = []
        edges = np.linspace(0, n, TURNS + 1).astype(int).tolist()
        for turn, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
            for kind, path in paths.items():
                where = np.where(hot, 0, terminal)[low:high] if kind == "hot" else terminal[low:high]
                part = made(checked, [f"c{c}" for c in customer[low:high]], [f"t{t}" for t in where], at[low:high], low)
                seen: list[NDArray[np.float64]] = []
                parts = path.measure(part, lambda e, seen=seen: seen.append(e.matrix[:, columns]))
                cost[kind].append(sum(parts.values()))
                if kind == "hot":
                    got.append(np.vstack(seen))
            context.say(f"turn {turn + 1}: {cost['uniform'][-1]:.1f} us uniform, {cost['hot'][-1]:.1f} us hot")
        row = paths["hot"].row(b"1:t0")
    # The first turns fill the rows.
    settled = {kind: median(each[TURNS // 2 :]) for kind, each in cost.items()}
    times = settled["hot"] / settled["uniform"]
    result.figures |= {
        "transactions": n,
        "us_uniform": round(settled["uniform"], 2),
        "us_hot": round(settled["hot"], 2),
        "times": round(times, 3),
    }
    result.check(f"at most {MAX_TIMES} times the uniform case", times <= MAX_TIMES, cost=True)
    result.at_least("hot_transactions", int(hot.sum()), int(0.09 * n))
    _check_row(result, row)
    _check_error(result, rng, at, hot, np.vstack(got))
    return result


def _check_row(result: Result, row: bytes) -> None:
    entries = len(row) // ENTRY_BYTES
    # Panes of one-, three- and seven-day windows with a delay of one day, and of an hour, half each for labels.
    plan_days = {HOUR_MS: 1 / 24, 24 * HOUR_MS: 2, 3 * 24 * HOUR_MS: 4, 7 * 24 * HOUR_MS: 8}
    late_days = 1 / 24
    panes = sum((reach + late_days) * 24 * HOUR_MS / -(-w // PANES) + 2 for w, reach in plan_days.items())
    bound = int(2 * longest_unfolded(K) + 256 + 1 + panes)
    result.figures |= {"row_entries": entries, "row_bytes": len(row), "bound_entries": bound}
    result.check("the hot terminal's row is within its bound", entries <= bound)


def _check_error(
    result: Result, rng: np.random.Generator, at: NDArray[np.int64], hot: NDArray[np.bool_], got: NDArray[np.float64]
) -> None:
    """Sampled transactions of the hot terminal against a count of the log."""
    places = np.flatnonzero(hot)
    short: dict[str, list[float]] = {name: [] for name in WINDOWS}
    too_much = beyond = inexact = 0
    for i in np.sort(rng.choice(len(places), min(SAMPLED, len(places)), replace=False)).tolist():
        times, now = at[places[:i]], at[places[i]]
        old = np.arange(i) < i - K
        for column, (name, window) in enumerate(WINDOWS.items()):
            inside = (times > now - window) & (times <= now)
            # What an old entry's pane decides: the one the window begins in is left out, the one it ends in too if
            # something in it is later than the window.
            width = -(-window // PANES)
            pane = times // width * width
            ending = old & (pane == (now + 1) // width * width)
            late = bool((times[ending] > now).any())
            unsure = inside & old & ((pane <= now - window) | (ending & late))
            value = int(got[places[i], column]) - 1
            true = int(inside.sum())
            too_much += value > true
            beyond += value < true - int(unsure.sum())
            inexact += value < true
            if true:
                short[name].append((true - value) / true)
    result.figures |= {"sampled": 3 * min(SAMPLED, len(places)), "inexact": inexact}
    result.figures["mean_share_missing"] = {name: round(float(np.mean(each)), 4) for name, each in short.items()}
    result.figures["most_share_missing"] = {name: round(max(each), 4) for name, each in short.items()}
    result.check("no count is too high", too_much == 0)
    result.check("no count lacks more than the panes at its window's edges hold", beyond == 0)
    result.at_least("inexact", inexact, 1)


def _break() -> None:
    """Rows are cut at their newest entries, as if nothing had been before."""
    from stream_scorer.features import panes
    from stream_scorer.state.row_format import KIND

    whole = panes.folded

    def cut(entries, entity, limit, past_ms):  # type: ignore[no-untyped-def]
        made = whole(entries, entity, limit, past_ms)
        made = made[made[:, KIND] >= -1]
        made[0, 1] = 0
        return made

    panes.folded = cut
