"""The options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream_scorer.errors import UsageError
from stream_scorer.spec.model import CheckedSpec

# More values than this make no readable table.
_MAX_VALUES = 50


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured, and how.

    Attributes:
        budgets: alert budgets, as shares of the transactions. cards_per_day: k of the card precision.
        review_cost: cost of a review, in minor units of the reference currency.
        case_gap_days: a fraud case ends when its card has no fraud for this number of days.
        segments: fields to group by; None for all booleans, and categories with at most 50 values, that are not
            sensitive.
        replicates: of the bootstrap, 0 for no intervals. seed: of the bootstrap.
        rows: transactions per batch; affects the speed only. piece_rows: transactions per file of results.
    """

    budgets: tuple[float, ...] = (0.001, 0.005, 0.01)
    cards_per_day: list[int] = field(default_factory=lambda: [100])
    review_cost: int = 0
    case_gap_days: int = 7
    segments: tuple[str, ...] | None = None
    replicates: int = 200
    seed: int = 1
    rows: int = 4_096
    piece_rows: int = 131_072

    def __post_init__(self) -> None:
        """Raises `UsageError` for a value out of range."""
        if any(not 0.0 < budget < 1.0 for budget in self.budgets):
            raise UsageError("an alert budget must be above 0 and below 1")
        if any(k < 1 for k in self.cards_per_day):
            raise UsageError("the number of cards per day must be at least 1")
        if self.review_cost < 0 or self.case_gap_days < 1 or self.replicates < 0:
            raise UsageError("the review cost, the gap between cases or the number of replicates is out of range")
        if self.rows < 1 or self.piece_rows < 1:
            raise UsageError("a batch and a piece must have at least one transaction")

    def segments_of(self, checked: CheckedSpec) -> list[str]:
        """The fields to group by. Raises `UsageError` for a field that cannot be used."""
        fields = checked.spec.transaction.fields
        usable = [
            name
            for name, field_ in fields.items()
            if field_.type in ("category", "boolean")
            and not field_.sensitive
            and len(field_.values or []) <= _MAX_VALUES
        ]
        if self.segments is None:
            return usable
        for name in self.segments:
            if name not in usable:
                raise UsageError(
                    f"{name!r} is not a field to group by",
                    hint=f"Give a boolean, or a category with at most {_MAX_VALUES} values, that is not sensitive: "
                    f"{', '.join(usable) or 'there is none'}.",
                )
        return list(self.segments)
