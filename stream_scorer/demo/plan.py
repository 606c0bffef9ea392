"""The parameters of a demo run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from stream_scorer.errors import UsageError
from stream_scorer.simulate.config import DAY_MS, SimulationConfig

# Labels continue to arrive for this long after the last transaction, so event time ends at least this long before now.
SETTLE_DAYS = 2
# 1970-01-05. Traffic has a weekly cycle: with a start on the same weekday, a demo does not depend on the date.
_A_MONDAY_MS = 4 * DAY_MS
PARTITIONS = 4
# Terminals per customer: few enough that customers share them; enough that a month of a usual terminal fits its row.
TERMINALS_SHARE = 0.5


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of a demo.

    Attributes:
        transactions: live transactions, without duplicates. rate: live transactions per second (wall clock).
        history: transactions that the members are trained on. customers: number of simulated customers.
        fraud_rate: target fraud as a share of the genuine transactions; a short history needs a higher share.
        duplicates, garbage: extra live records, as shares of the transactions.
        review_rate, block_rate: target shares of alerted and of blocked transactions; thresholds are fitted to them.
        incident: whether the demo promotes a faulty version.
        seed: seed of every random choice.
    """

    transactions: int = 60_000
    rate: float = 800.0
    history: int = 150_000
    customers: int = 4_000
    fraud_rate: float = 0.01
    duplicates: float = 0.05
    garbage: float = 0.002
    review_rate: float = 0.015
    block_rate: float = 0.005
    incident: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        """Raise `UsageError` if a size is too small for a demo."""
        if self.transactions < 1_000:
            raise UsageError(
                f"{self.transactions} live transactions are too few for a demo", hint="Give at least 1000."
            )
        if self.history < 20_000:
            raise UsageError(
                f"{self.history} transactions of history are too few to train on", hint="Give at least 20000."
            )
        if self.rate <= 0:
            raise UsageError(f"the rate must be above 0, not {self.rate}")

    def simulation(self, now_ms: int) -> SimulationConfig:
        """History and live traffic as one simulation from a Monday on, which ends `SETTLE_DAYS` before `now_ms`."""
        config = SimulationConfig(
            seed=self.seed,
            customers=self.customers,
            terminals=max(int(self.customers * TERMINALS_SHARE), 50),
            days=None,
            transactions=self.history + self.transactions,
            fraud_rate=self.fraud_rate,
        )
        latest_ms = config.start_to_end_by(now_ms) - SETTLE_DAYS * DAY_MS
        return dataclasses.replace(config, start_ms=latest_ms - (latest_ms - _A_MONDAY_MS) % (7 * DAY_MS))
