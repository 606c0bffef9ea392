"""Checks of single values in a pipeline spec: values that a type allows, but that have no meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from stream_scorer.errors import SpecError
from stream_scorer.records import EXACT_INTEGERS
from stream_scorer.spec.model import MAX_VALUE, Condition, Field, PipelineSpec, View, duration_ms, view_features

# Longer than any history; all sums of times and durations stay far below 2^63 ms.
_LONGEST = "100000d"
_MAX_NUMBER = 1.7e308


def check_field(name: str, field: Field, *, is_value: bool) -> None:
    """Raise `SpecError` for values or bounds of the field `name` that no transaction can meet, or that mislead."""
    path = f"transaction.fields.{name}"
    if (field.type == "category") != bool(field.values):
        raise SpecError("a field of type category requires `values`; other types do not allow them", path=path)
    twice = first_repeated(field.values or [])
    if twice is not None:
        raise SpecError(
            f"the value {twice!r} is given twice",
            path=f"{path}.values",
            hint="The position of a value is its number in features: list each one once.",
        )
    _check_bounds(field.min, field.max, path)
    if field.type != "integer":
        return
    most = MAX_VALUE if is_value else EXACT_INTEGERS
    for side, bound in (("min", field.min), ("max", field.max)):
        if bound is not None and bound != int(bound):
            raise SpecError(f"{side} of an integer must be an integer", path=f"{path}.{side}")
    if (field.min or 0) > most or (field.max or 0) < -most:
        raise SpecError(f"no value can be within the bounds: integers are limited to {most}", path=path)


def check_condition(condition: Condition, path: str) -> None:
    """Raise `SpecError` for bounds that no transaction can meet."""
    _check_bounds(condition.min, condition.max, path)


def _check_bounds(low: float | None, high: float | None, path: str) -> None:
    for side, bound in (("min", low), ("max", high)):
        # The comparison also refuses NaN, and works for integers that are larger than any double.
        if bound is not None and not abs(bound) <= _MAX_NUMBER:
            raise SpecError(
                f"{side} must be a finite number", path=f"{path}.{side}", hint=f"Leave {side} out if there is no limit."
            )
    if low is not None and high is not None and low > high:
        raise SpecError("min is greater than max: no value can be within the bounds", path=path)


def check_feature_names(view: View, path: str) -> None:
    """Raise `SpecError` if two features of `view` have one name."""
    for name, given in (("windows", view.windows), ("aggregates", view.aggregates)):
        twice = first_repeated(given)
        if twice is not None:
            raise SpecError(f"{twice} is given twice: two features would have one name", path=f"{path}.{name}")
    twice = first_repeated([feature.name for feature in view_features(view)])
    if twice is not None:
        raise SpecError(f"two features are named {twice!r}", path=path)


def check_rates(rates: dict[str, float]) -> None:
    """Raise `SpecError` for a rate that is not a finite number."""
    for currency, rate in rates.items():
        if not math.isfinite(rate):
            raise SpecError("a rate must be a finite number", path=f"transaction.rates.{currency}")


def check_durations(spec: PipelineSpec) -> None:
    """Raise `SpecError` for a duration so long that times could overflow."""
    for path, text in _durations(spec):
        if duration_ms(text) > duration_ms(_LONGEST):
            raise SpecError(f"a duration must be at most {_LONGEST}", path=path)


def _durations(spec: PipelineSpec) -> Iterator[tuple[str, str]]:
    for index, view in enumerate(spec.views):
        for place, window in enumerate(view.windows):
            yield f"views[{index}].windows[{place}]", window
        yield f"views[{index}].delay", view.delay
    yield "labels.horizon", spec.labels.horizon
    yield "monitor.pane", spec.monitor.pane
    for name in spec.time.__struct_fields__:
        yield f"time.{name}", getattr(spec.time, name)


def first_repeated(values: Sequence[str] | Iterable[str]) -> str | None:
    """The first value that is equal to an earlier one."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
