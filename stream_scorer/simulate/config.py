"""The parameters of a simulated data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stream_scorer.errors import SettingsError

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000

# 2025-01-06T00:00:00Z, a Monday.
DEFAULT_START_MS = 1_736_121_600_000


@dataclass(frozen=True)
class Life:
    """How a world changes over time; without it, entities and their activity stay the same.

    Attributes:
        growth: relative growth of the number of transactions per year, in addition to that of customers.
        new_customers, lost_customers: shares of the customers who join, or leave, on some day of the simulation.
        new_terminals: share of the terminals that open on some day of the simulation.
        card_bursts, terminal_bursts: mean number per day of bursts of fraud on one card, and on many cards at one
            terminal, in addition to the episodes that `fraud_rate` budgets for.
        sales: days with a sale: `sale_volume` times the transactions, and online prices at `sale_price`.
    """

    growth: float = 0.0
    new_customers: float = 0.0
    lost_customers: float = 0.0
    new_terminals: float = 0.0
    card_bursts: float = 0.0
    terminal_bursts: float = 0.0
    sales: tuple[int, ...] = ()
    sale_volume: float = 1.5
    sale_price: float = 0.8

    def __post_init__(self) -> None:
        """Raise `SettingsError` if a value is out of range."""
        for name in ("new_customers", "lost_customers", "new_terminals"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise SettingsError(f"{name} must be at least 0 and below 1")
        if self.growth <= -1.0 or min(self.card_bursts, self.terminal_bursts) < 0.0:
            raise SettingsError("growth must be above -1, and the numbers of bursts at least 0")
        if min(self.sale_volume, self.sale_price) <= 0.0:
            raise SettingsError("sale_volume and sale_price must be above 0")


@dataclass(frozen=True)
class SimulationConfig:
    """All parameters of a data set: the same config gives the same bytes (with the same numpy).

    The simulation ends after `days` or after exactly `transactions`, whichever comes first; one may be None.

    Attributes:
        seed: at least 0; another seed gives other customers and other event ids.
        customers, terminals: their numbers.
        start_ms: event time of the first midnight, epoch milliseconds; a multiple of a day, or hours of day shift.
        days: number of days of event time.
        transactions: number of transactions, including fraud.
        transactions_per_customer_day: mean over customers and days.
        fraud_rate: target number of fraud transactions, as a share of the genuine ones.
        life: how the world changes over time.
    """

    seed: int = 1
    customers: int = 5_000
    terminals: int = 1_000
    start_ms: int = DEFAULT_START_MS
    days: int | None = 14
    transactions: int | None = None
    transactions_per_customer_day: float = 1.5
    fraud_rate: float = 0.007
    life: Life | None = None

    def __post_init__(self) -> None:
        """Raise `SettingsError` if a value is out of range."""
        if self.seed < 0:
            raise SettingsError(f"seed {self.seed} is negative")
        if self.customers < 1 or self.terminals < 10:
            raise SettingsError("a simulation needs at least 1 customer and 10 terminals")
        if self.days is None and self.transactions is None:
            raise SettingsError("a simulation needs an end", hint="Set days or transactions.")
        if (self.days is not None and self.days < 1) or (self.transactions is not None and self.transactions < 1):
            raise SettingsError("days and transactions must be at least 1")
        if not 0 < self.transactions_per_customer_day <= 1_000:
            raise SettingsError("transactions_per_customer_day must be above 0 and at most 1000")
        if not 0 <= self.fraud_rate <= 0.5:
            raise SettingsError("fraud_rate must be between 0 and 0.5")

    @property
    def transactions_per_day(self) -> float:
        """Expected number of genuine transactions per day."""
        return self.customers * self.transactions_per_customer_day

    @property
    def expected_days(self) -> int:
        """Expected number of days of event time, rounded up."""
        if self.transactions is None:
            assert self.days is not None
            return self.days
        # A tenth more, for weekends and the randomness of small worlds.
        needed = int(1.1 * self.transactions / self.transactions_per_day) + 1
        return needed if self.days is None else min(self.days, needed)

    def starting(self, start_ms: int) -> SimulationConfig:
        """The same simulation with another first midnight."""
        return replace(self, start_ms=start_ms)

    def start_to_end_by(self, now_ms: int) -> int:
        """The latest midnight, epoch milliseconds, from which the simulation should end before `now_ms`."""
        return now_ms // DAY_MS * DAY_MS - self.expected_days * DAY_MS
