"""The series of an ensemble as the drift detector needs them: where they come from and who reads them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec

from stream_scorer.ensemble.manifest import Manifest, Series, member_key
from stream_scorer.monitor.drift_types import SeriesInfo, SeriesKind
from stream_scorer.spec.model import CheckedSpec, Derived, ViewFeature

# The name of the series of decisions.
DECISION = "decision"
# Aggregates of views that follow the volume of traffic.
RATES = frozenset({"count", "sum", "distinct", "since_last", "is_new", "label_count"})
# The "field" of features that are made of labels.
LABELS = "labels"
# Functions and aggregates whose values are codes.
CODES = frozenset({"code", "present", "is_weekend", "is_night", "is_new"})


def describe(checked: CheckedSpec, manifest: Manifest) -> dict[str, SeriesInfo]:
    """The series of `manifest` by name: features, members, score and decision, in this order."""
    readers: dict[str, list[str]] = {}
    for member in manifest.members:
        for name in member.inputs:
            readers.setdefault(name, []).append(member.name)
    features = describe_features(checked)
    profile = manifest.reference_profile
    found = {}
    for name in manifest.features:
        info = features.get(name, SeriesInfo(name, "feature"))
        found[name] = _complete(info, readers, profile[name], manifest)
    total = sum(member.weight for member in manifest.members) or 1.0
    for member in manifest.members:
        series = f"member:{member.name}"
        edges = tuple(profile[series].edges)
        key = _digest([member_key(member), member.calibrator, edges])
        found[series] = SeriesInfo(
            series, "member", members=(member.name,), edges=edges, key=key, weight=member.weight / total
        )
    score = _score_key(manifest)
    found["score"] = SeriesInfo("score", "score", edges=tuple(profile["score"].edges), key=score)
    # Bins: approve, review, block, and none for missing ones.
    found[DECISION] = SeriesInfo(DECISION, "decision", edges=(1.0, 2.0), key=_digest([score, manifest.thresholds]))
    return found


def _complete(info: SeriesInfo, readers: dict[str, list[str]], series: Series, manifest: Manifest) -> SeriesInfo:
    return replace(
        info,
        members=tuple(readers.get(info.name, ())),
        edges=tuple(series.edges),
        key=_digest([manifest.feature_hash, series.edges]),
    )


def _score_key(manifest: Manifest) -> str:
    members = [[member_key(m), m.calibrator, m.weight, m.ranks] for m in manifest.members]
    parts = [members, manifest.combiner, manifest.link, manifest.final_calibrator]
    parts += [manifest.incomplete_calibrator] if manifest.incomplete_calibrator else []
    return _digest([*parts, manifest.reference_profile["score"].edges])


def _digest(parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]


def describe_features(checked: CheckedSpec) -> dict[str, SeriesInfo]:
    """Every feature of the spec by name, without its readers, edges and key."""
    found = {feature.name: _of_view(checked, feature) for feature in checked.view_features}
    for derived in checked.spec.derived:
        found[derived.name] = _of_derived(derived, found)
    return found


def _of_view(checked: CheckedSpec, feature: ViewFeature) -> SeriesInfo:
    view, spec = feature.view, checked.spec
    entity = spec.entities[view.entity].field
    if feature.aggregate in ("sum", "mean", "min", "max", "std"):
        fields = [spec.transaction.value, entity]
    elif feature.aggregate == "distinct" and view.of is not None:
        fields = [view.of, entity]
    elif feature.aggregate in ("label_rate", "label_count"):
        fields = [LABELS, entity]
    else:
        fields = [entity]
    return SeriesInfo(
        feature.name,
        "rate" if feature.aggregate in RATES else "feature",
        tuple(dict.fromkeys([*fields, *view.where])),
        feature.aggregate,
        view.entity,
        feature.window_ms + feature.delay_ms,
        categorical=feature.aggregate in CODES,
    )


def _of_derived(derived: Derived, known: dict[str, SeriesInfo]) -> SeriesInfo:
    sources = [known[name] for name in derived.of if name in known]
    fields = [field for name in derived.of for field in (known[name].fields if name in known else (name,))]
    kind: SeriesKind = "rate" if any(source.kind == "rate" for source in sources) else "feature"
    return SeriesInfo(
        derived.name,
        kind,
        tuple(dict.fromkeys(fields)),
        derived.function,
        next((source.entity for source in sources if source.entity), ""),
        max((source.reach_ms for source in sources), default=0),
        logarithmic=derived.function == "log1p",
        categorical=derived.function in CODES,
    )
