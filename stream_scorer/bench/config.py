"""The parameters of a benchmark. Every parameter that affects a result is here and is printed with the results."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stream_scorer.errors import SettingsError

# A shorter drain ends before it has a few samples.
MIN_TRANSACTIONS = 2_000


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """A benchmark's size; the defaults are the full one, about 6 minutes on 2 cores.

    Attributes:
        transactions: size of one drain. drain_rounds: drains per kind, alternating. warm_up_drains: discarded drains
            per kind before them, because the broker's JIT compiler needs a warm-up.
        rates: transactions per second of the open-loop windows. latency_rounds: windows per kind and rate, alternating.
        warm_up_s, window_s: discarded and measured seconds of each window.
        loop_events, loop_s: limits of the per-event loop; it ends at the first one.
        batch, pace_ms: as in `stream-scorer run`; the same for scorer and passthrough.
        partitions: number per topic. history: transactions that the members are trained on. seed: seed of all data.
        backlog: transactions processed before the first window, so that rows have some history.
        scorer_arguments: additional flags for the scorer only.
    """

    transactions: int = 150_000
    drain_rounds: int = 3
    warm_up_drains: int = 1
    rates: tuple[int, ...] = (1_000, 5_000)
    latency_rounds: int = 5
    warm_up_s: float = 1.5
    window_s: float = 5.0
    loop_events: int = 500
    loop_s: float = 15.0
    batch: int = 1_024
    pace_ms: int = 20
    partitions: int = 4
    history: int = 60_000
    backlog: int = 20_000
    seed: int = 1
    scorer_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `SettingsError` if a size is out of range."""
        if self.transactions < MIN_TRANSACTIONS:
            raise SettingsError(f"transactions must be at least {MIN_TRANSACTIONS}, not {self.transactions}")
        counts = (self.drain_rounds, self.latency_rounds, self.loop_events, self.partitions, *self.rates)
        if min(counts) < 1 or self.window_s <= 0 or self.warm_up_s < 0 or self.warm_up_drains < 0 or self.loop_s <= 0:
            raise SettingsError("rounds, rates, seconds, events and partitions must be above 0")

    @property
    def live_transactions(self) -> int:
        """Number of transactions in all windows of one kind."""
        return self.latency_rounds * sum(self.window_transactions(rate) for rate in self.rates)

    def window_transactions(self, rate: int) -> int:
        """Number of transactions in one window at `rate`, including the warm-up."""
        return max(1, round((self.warm_up_s + self.window_s) * rate))


def quick(config: BenchConfig) -> BenchConfig:
    """A quick benchmark, a quarter of the time: fewer rounds and shorter windows, so noisier."""
    return replace(
        config, transactions=60_000, drain_rounds=1, latency_rounds=2, warm_up_s=1.0, window_s=3.0,
        loop_events=300, loop_s=5.0, history=30_000, backlog=10_000,
    )  # fmt: skip
