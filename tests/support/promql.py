"""Finds the metrics and labels that a PromQL expression names, and compares them with what exists.

It splits an expression into words and does not parse it: `promtool` does (tools/check_rules.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stream_scorer.observability.metrics import Metric

# Labels that Prometheus adds to every series that it scrapes.
SCRAPED = frozenset({"job", "instance"})
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_NAME = re.compile(r"(?<![\w:.])([A-Za-z_:][\w:]*)(?!\s*\()(?![\w:])")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "on", "without", "ignoring", "inf", "nan"}


@dataclass
class Names:
    """What an expression names.

    Attributes:
        matched: by metric, the labels in its matchers. grouped: labels of all groupings. kept: those of `by`.
    """

    matched: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)

    @property
    def metrics(self) -> set[str]:
        """The names of all metrics."""
        return set(self.matched)


def names(expression: str) -> Names:
    """The metrics and labels in `expression`."""
    found = Names()
    text = _RANGE.sub("", _STRING.sub('""', expression))
    for word, labels in _GROUPING.findall(text):
        listed = {label.strip() for label in labels.split(",") if label.strip()}
        found.grouped |= listed
        if word == "by":
            found.kept |= listed
    text = _GROUPING.sub(" ", text)
    for metric, matchers in _SELECTOR.findall(text):
        found.matched.setdefault(metric, set()).update(_MATCHER.findall(matchers))
    text = re.sub(r"\{[^}]*\}", " ", text)
    for name in _NAME.findall(text):
        if name.lower() not in _WORDS and not re.fullmatch(r"\d+[smhdwy]?", name):
            found.matched.setdefault(name, set())
    return found


def series(catalogue: Iterable[Metric]) -> dict[str, set[str]]:
    """The labels of every series of `catalogue` as Prometheus stores it: a histogram has three names."""
    out = {"up": set(SCRAPED), "ALERTS": {*SCRAPED, "alertname", "alertstate", "severity"}}
    for metric in catalogue:
        labels = {*metric.labels, *SCRAPED}
        if metric.kind == "histogram":
            out |= {metric.name + "_sum": labels, metric.name + "_count": labels}
            out[metric.name + "_bucket"] = labels | {"le"}
        else:
            out[metric.name] = labels
    return out


def problems(expression: str, known: Mapping[str, set[str]]) -> list[str]:
    """What `expression` names that does not exist; empty if all of it exists."""
    found = names(expression)
    out = [f"there is no metric {name}" for name in sorted(found.metrics - known.keys())]
    for name in sorted(found.metrics & known.keys()):
        out += [f"{name} has no label {label}" for label in sorted(found.matched[name] - known[name])]
    everywhere = set().union(*(known[name] for name in found.metrics & known.keys()))
    out += [f"no metric of the expression has the label {label}" for label in sorted(found.grouped - everywhere)]
    if not found.metrics:
        out.append("the expression names no metric")
    return out


def labels_of_result(expression: str, known: Mapping[str, set[str]]) -> set[str]:
    """Labels that the result may have: those of `by`, or without an aggregation those of the metrics."""
    found = names(expression)
    if found.kept:
        return found.kept
    if re.search(r"\b(sum|min|max|avg|count)\s*\(", expression):
        return set()
    return set().union(*(known.get(name, set()) for name in found.metrics))
