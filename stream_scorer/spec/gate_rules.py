"""The rules file of a gate: its types, and how it is read."""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from stream_scorer.documents import InvalidNode, convert, load_document, parse_yaml
from stream_scorer.errors import UsageError
from stream_scorer.spec.model import CheckedSpec, Duration

Positive = Annotated[float, Meta(gt=0.0)]
NotNegative = Annotated[float, Meta(ge=0.0)]
Ratio = Annotated[float, Meta(ge=1.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1)]

Rate = Literal["false_positive_rate", "alert_rate", "blocked_genuine_rate", "block_rate"]
Metric = Literal[
    "average_precision", "roc_auc", "precision", "recall", "false_positive_rate", "alert_rate", "blocked_genuine_rate",
    "block_rate", "value_caught",
]  # fmt: skip
# A rise of these is a loss.
LOWER_IS_BETTER: frozenset[str] = frozenset(get_args(Rate))
# These do not depend on labels.
WITHOUT_LABELS: frozenset[str] = frozenset({"alert_rate", "block_rate"})
# Without labels, these would be rates of all transactions.
OF_GENUINE: frozenset[str] = frozenset({"false_positive_rate", "blocked_genuine_rate"})


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every section: an unknown key is an error."""


class Quality(Section, frozen=True):
    """A limit of the candidate's loss against the champion, on the same transactions.

    `max_loss` is in the unit of the metric (`value_caught`: minor units of the reference currency). `evidence`: whether
    the worse end of the 95 % interval by card must be within the limit, or only the value. `min_rows` transactions are
    needed. An interval of a metric of frauds needs `min_fraud_cards` cards with a known fraud: on fewer cards the
    bootstrap hardly varies, and its interval is too narrow. For a metric that needs labels, at least the share
    `min_mature` of the transactions must be older than the label horizon.
    """

    metric: Metric
    max_loss: NotNegative
    evidence: Literal["interval", "value"] = "interval"
    min_rows: Count = 1_000
    min_fraud_cards: Count = 10
    min_mature: Share = 0.0


class Latency(Section, frozen=True):
    """A limit of the candidate's prediction time, as a multiple of the champion's in the same process."""

    max_ratio: Positive


class Cost(Section, frozen=True):
    """Limits of the size of all member files: bytes, and as a multiple of the champion's."""

    max_bytes: Count | None = None
    max_ratio: Positive | None = None


class Drift(Section, frozen=True):
    """A limit of the Jensen-Shannon distance (0 to 0.83) between the candidate's profile and recent traffic.

    It applies to each feature that the candidate reads, each member and the score, except those in `ignore`, such as
    features of the calendar. `min_rows` transactions are needed.
    """

    max_distance: Positive
    ignore: list[str] = []
    min_rows: Count = 2_000


class Skew(Section, frozen=True):
    """A limit of the share of scores in which a feature that live scorers recorded differs from the log.

    `min_scores` recorded scores of each feature are needed.
    """

    max_share: Share
    min_scores: Count = 1_000


class Leak(Section, frozen=True):
    """No column of the training set may differ from what the serving kernel computes.

    `rows` of the set are drawn and compared, values to the relative `tolerance`. `same_set`: the digest of the set must
    be the one in the candidate's manifest.
    """

    rows: Count = 10_000
    tolerance: NotNegative = 1e-9
    same_set: bool = True


class Fairness(Section, frozen=True):
    """A limit of the differences of a rate between the values of a field.

    Values with fewer than `min_rows` transactions are left out. `max_ratio` limits the highest rate as a multiple of
    the lowest one. `max_ratio_to_champion` is for fields whose values differ in their risk: it limits by how much more
    the rate of one value grows from champion to candidate than that of another one. It leaves out values that have
    fewer than `min_alerts` alerts, for rates of blocks fewer blocks, in both versions.
    """

    segment: str
    metric: Rate = "false_positive_rate"
    max_ratio: Ratio | None = None
    max_ratio_to_champion: Ratio | None = None
    min_rows: Count = 1_000
    min_alerts: Count = 20


class Rules(Section, frozen=True):
    """A rules file. `traffic` is the event time, back from the newest transaction, that counts as recent on topics."""

    version: Literal[1]
    traffic: Duration | None = None
    quality: list[Quality] = []
    latency: Latency | None = None
    cost: Cost | None = None
    drift: Drift | None = None
    skew: Skew | None = None
    leak: Leak | None = None
    fairness: list[Fairness] = []

    @property
    def sha256(self) -> str:
        """Digest of the rules, independent of the layout of their file."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @property
    def needs_evaluation(self) -> bool:
        """Whether a rule needs the paired evaluation."""
        return bool(self.quality or self.fairness)

    @property
    def needs_features(self) -> bool:
        """Whether a rule needs a sample of the features of recent traffic."""
        return bool(self.drift or self.latency)


_EXAMPLES = {
    "version": "Write version: 1.",
    "traffic": "Write a duration, as in 14d.",
    "metric": f"A rule of quality knows {', '.join(get_args(Metric))}; one of fairness, {', '.join(get_args(Rate))}.",
    "max_loss": "Write the largest loss that is acceptable, 0 or more, as in 0.01.",
    "evidence": "Write interval or value.",
    "max_ratio": "Write a multiple, as in 1.25; of fairness, at least 1.",
    "max_ratio_to_champion": "Write a multiple, at least 1, as in 1.5.",
    "max_bytes": "Write a number of bytes, as in 50000000.",
    "max_distance": "Write a distance above 0, as in 0.2.",
    "min_mature": "Write a share from 0 to 1, as in 0.5.",
    "max_share": "Write a share from 0 to 1, as in 0.01.",
    "same_set": "Write true or false.",
    "quality": "Write a list: `- {metric: average_precision, max_loss: 0.01}`.",
    "fairness": "Write a list: `- {segment: channel, max_ratio: 1.5}`.",
}
_SECTIONS: dict[str, type[Section]] = {
    "quality": Quality,
    "latency": Latency,
    "cost": Cost,
    "drift": Drift,
    "skew": Skew,
    "leak": Leak,
    "fairness": Fairness,
}


def load_rules(path: Path) -> Rules:
    """Read the rules file at `path` (YAML). Raises `UsageError` with the file, the field and what to write instead."""
    return load_document(path, "rules file", parse_rules, hint="docs/gate.md shows one.")


def parse_rules(text: str) -> Rules:
    """The rules in `text` (YAML). Raises `UsageError`."""
    try:
        rules = convert(parse_yaml(text), Rules)
    except InvalidNode as invalid:
        raise _readable(invalid.message, invalid.node) from None
    _check(rules)
    return rules


def _readable(message: str, path: str) -> UsageError:
    """An error that names the field, and what to write there."""
    parts = re.sub(r"\[[^\]]*\]", "", path).split(".")
    section = _SECTIONS.get(parts[0])
    if unknown := re.match(r"Object contains unknown field `(.*)`", message):
        return _unknown(unknown[1], path, section)
    if missing := re.match(r"Object missing required field `(.*)`", message):
        field = missing[1]
        return UsageError(f"{_join(path, field)} is missing", hint=_EXAMPLES.get(field, ""))
    hint = _EXAMPLES.get(parts[-1], "")
    if not path:
        hint = "The file is a mapping that begins with version: 1."
    elif not hint and section is not None and len(parts) == 1:
        hint = f"Write a mapping with {', '.join(section.__struct_fields__)}."
    return UsageError(f"{path or '(top level)'}: {message}", hint=hint)


def _unknown(name: str, path: str, section: type[Section] | None) -> UsageError:
    known = list((Rules if section is None else section).__struct_fields__)
    near = difflib.get_close_matches(name, known, 1)
    meant = f"Did you mean {near[0]}? " if near else ""
    return UsageError(f"{_join(path, name)} is not known", hint=f"{meant}Known here: {', '.join(known)}.")


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _check(rules: Rules) -> None:
    """What types cannot express. Raises `UsageError`."""
    if not any((rules.quality, rules.latency, rules.cost, rules.drift, rules.skew, rules.leak, rules.fairness)):
        raise UsageError("the file has no rule", hint=f"Write at least one of {', '.join(_SECTIONS)} (docs/gate.md).")
    if rules.cost is not None and rules.cost.max_bytes is None and rules.cost.max_ratio is None:
        raise UsageError("cost has no limit", hint="Write max_bytes, max_ratio, or both.")
    for index, each in enumerate(rules.fairness):
        if each.max_ratio is None and each.max_ratio_to_champion is None:
            raise UsageError(f"fairness[{index}] has no limit", hint="Write max_ratio, max_ratio_to_champion, or both.")
    for name, keys in (
        ("quality", [str(each.metric) for each in rules.quality]),
        ("fairness", [f"{each.segment} {each.metric}" for each in rules.fairness]),
    ):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise UsageError(f"{name} has two rules for {twice[0]}", hint="Keep one of them.")


def check_names(rules: Rules, checked: CheckedSpec) -> None:
    """Raise `UsageError` if a rule names an unknown feature, or a field that an evaluation cannot group by."""
    for index, name in enumerate(rules.drift.ignore if rules.drift is not None else []):
        if name not in checked.features and name != "score" and not name.startswith("member:"):
            near = difflib.get_close_matches(name, checked.features, 1)
            raise UsageError(
                f"drift.ignore[{index}]: the spec has no feature {name!r}",
                hint=f"Did you mean {near[0]}?" if near else "`stream-scorer spec check` lists the features.",
            )
    fields = checked.spec.transaction.fields
    usable = [name for name, field in fields.items() if field.type in ("category", "boolean") and not field.sensitive]
    for index, each in enumerate(rules.fairness):
        if each.segment not in usable:
            raise UsageError(
                f"fairness[{index}].segment: {each.segment!r} is not a field to group by",
                hint=f"Name a category or a boolean that is not sensitive: {', '.join(usable) or 'there is none'}.",
            )
