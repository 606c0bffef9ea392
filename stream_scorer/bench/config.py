"""How large a benchmark is. Everything that moves a figure stands here and is printed with the figures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stream_scorer.errors import SettingsError

# Below this a drain is over before it has been looked at a few times.
MIN_TRANSACTIONS = 2_000


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """A benchmark's size; the defaults are the full one, about 6 minutes on 2 cores.

    Attributes:
        transactions: what one drain works off. drain_rounds: drains of each kind, in turn. warm_up_drains: of each kind
            before, thrown away, because the broker compiles what it runs often.
        rates: transactions a second of the open-loop windows. latency_rounds: windows of each kind and rate, in turn.
        warm_up_s, window_s: of each window, what is thrown away first and what is measured then.
        loop_events, loop_s: where the per-event loop ends, whichever comes first.
        batch, pace_ms: as `stream-scorer run`; the same for scorer and passthrough.
        partitions: of every topic. history: transactions that the members are trained on. seed: of all data.
        backlog: worked off before the first window, so that rows hold some history.
        scorer_arguments: more flags for the scorer alone.
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
        """Raises `SettingsError` if a size makes no sense."""
        if self.transactions < MIN_TRANSACTIONS:
            raise SettingsError(f"transactions = {self.transactions}: at least {MIN_TRANSACTIONS}")
        counts = (self.drain_rounds, self.latency_rounds, self.loop_events, self.partitions, *self.rates)
        if min(counts) < 1 or self.window_s <= 0 or self.warm_up_s < 0 or self.warm_up_drains < 0 or self.loop_s <= 0:
            raise SettingsError("rounds, rates, seconds, events and partitions are above 0")

    @property
    def live_transactions(self) -> int:
        """How many transactions all windows of one kind take."""
        return self.latency_rounds * sum(self.window_transactions(rate) for rate in self.rates)

    def window_transactions(self, rate: int) -> int:
        """How many transactions one window at `rate` takes, warm-up included."""
        return max(1, round((self.warm_up_s + self.window_s) * rate))


def quick(config: BenchConfig) -> BenchConfig:
    """A quarter of the time, for a look: fewer rounds and shorter windows, so noisier."""
    return replace(
        config, transactions=60_000, drain_rounds=1, latency_rounds=2, warm_up_s=1.0, window_s=3.0,
        loop_events=300, loop_s=5.0, history=30_000, backlog=10_000,
    )  # fmt: skip
