"""Updates of an ensemble, faulty in five ways with a measured effect, or healthy.

A fault is a change of one member that somebody could make by mistake. Its strength is searched for, so that the effect
on a stretch of traffic, against the simulator's truth, is a given rise of false positives, or a fall of recall.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from proofs.worlds import Prepared
from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput
from stream_scorer.ensemble.manifest import Input, Manifest, preprocess_digest, read_manifest, read_members, sha256_hex
from stream_scorer.ensemble.members import Member, load_member

Kind = Literal["scale", "category_map", "imputation", "weight", "inverted_score"]
KINDS: tuple[Kind, ...] = ("scale", "category_map", "imputation", "weight", "inverted_score")
CARD = "customer"
CATEGORY, LAST_CODE = "channel_code", 3.0
# What counts as an effect, as shares of the false positives and of the detected fraud of the version before.
MIN_RISE, MAX_RISE, MIN_FALL = 0.12, 0.25, 0.20
# Factors of a strength, from mild to severe; between two of them the strength is bisected.
LADDER = 1.6 ** np.arange(1, 9)
# Weights of a faulty member grow to four times at most, those of a fault of the weight itself to 17 times.
MODERATE = 3
BISECTIONS = 10


@dataclass(frozen=True)
class Version:
    """A manifest and its loaded members, in the same order."""

    manifest: Manifest
    models: tuple[Member, ...]

    @classmethod
    def read(cls, folder: Path) -> Version:
        """The ensemble in `folder`."""
        manifest = read_manifest(folder)
        blobs = read_members(folder, manifest)
        models = [load_member(m.format, blob, len(m.inputs)) for m, blob in zip(manifest.members, blobs, strict=True)]
        return cls(manifest, tuple(models))

    def ensemble(self, version: str) -> Ensemble:
        """The ensemble as a scorer holds it."""
        return Ensemble(self.manifest, self.models, version=version)

    def with_thresholds(self, review: float, block: float) -> Version:
        """The same with other thresholds."""
        thresholds = msgspec.structs.replace(self.manifest.thresholds, review=review, block=block)
        return replace(self, manifest=msgspec.structs.replace(self.manifest, thresholds=thresholds))

    def mixed(self, other: Version, members: Sequence[int]) -> Version:
        """The same with the given members of `other`, with their weights."""
        manifest = self.manifest
        specs, models = list(manifest.members), list(self.models)
        for place in members:
            specs[place], models[place] = other.manifest.members[place], other.models[place]
        return Version(msgspec.structs.replace(manifest, members=specs), tuple(models))


@dataclass(frozen=True)
class Fault:
    """One member is changed: `strength` is a factor, or the value that replaces a missing one."""

    kind: Kind
    member: str
    input: str | None
    strength: float
    mapping: str = ""

    def apply(self, version: Version) -> Version:
        """`version` with the fault."""
        manifest = version.manifest
        place = manifest.member_names.index(self.member)
        spec, models = manifest.members[place], list(version.models)
        if self.input is not None:
            entries = list(spec.preprocess)
            number = spec.inputs.index(self.input)
            entries[number] = self._entry(entries[number])
            spec = msgspec.structs.replace(spec, preprocess=entries, preprocess_sha256=preprocess_digest(entries))
        if self.kind in ("category_map", "weight", "inverted_score"):
            spec = msgspec.structs.replace(spec, weight=spec.weight * self.strength)
        if self.kind == "inverted_score":
            models[place] = Inverted(models[place])
            spec = msgspec.structs.replace(spec, sha256=sha256_hex(f"inverted {spec.sha256}".encode()))
        members = [*manifest.members[:place], spec, *manifest.members[place + 1 :]]
        changed = msgspec.structs.replace(manifest, members=members, created_at=manifest.created_at + 1)
        return Version(changed, tuple(models))

    def _entry(self, entry: Input) -> Input:
        if self.kind == "scale":
            return msgspec.structs.replace(entry, scale=entry.scale * self.strength)
        if self.kind == "imputation":
            return msgspec.structs.replace(entry, impute=self.strength)
        if self.mapping == "reversed":  # code c is read as LAST_CODE - c
            return msgspec.structs.replace(entry, offset=LAST_CODE - entry.offset, scale=-entry.scale)
        return msgspec.structs.replace(entry, offset=entry.offset - 1.0)  # code c is read as c + 1


class Inverted:
    """A member that returns the probability of the other class."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def predict(self, inputs: Floats) -> Floats:
        """See `Member.predict`."""
        return np.asarray(1.0 - self._member.predict(inputs))


@dataclass(frozen=True)
class Effect:
    """The effect of an update, relative to the version before.

    Attributes:
        false_positives, recall: number of cards with a false positive, and with detected fraud. The unit is the card,
            as in the verdicts (ADR 0030): a burst on one card is one case.
        cards: number of cards with an alert.
        false_positive_transactions: number of transactions that are false positives.
    """

    false_positives: float
    recall: float
    cards: float
    false_positive_transactions: float

    @property
    def harmful(self) -> bool:
        """Whether the effect is large enough, and a rise not larger than wanted."""
        return self.recall <= -MIN_FALL or MIN_RISE <= self.false_positives <= MAX_RISE


@dataclass
class Truth:
    """A stretch of traffic with its hidden truth: features ``(n, n_features)``; fraud and card ``(n,)``."""

    features: Floats
    fraud: Bools
    card: Ints
    _raw: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, stretch: Sequence[Prepared]) -> Truth:
        """The truth of prepared batches."""
        matrices = [p.batch.enriched.matrix for p in stretch if p.batch.enriched is not None]
        ids = [i for p in stretch if p.batch.events is not None for i in p.batch.events.transactions.entity_ids[CARD]]
        card = np.unique(np.array(ids, dtype=np.str_), return_inverse=True)[1]
        return cls(np.concatenate(matrices), np.concatenate([p.fraud for p in stretch]), card)

    def score(self, version: Version, *, keep: bool = False) -> Floats:
        """Final scores ``(n,)``. `keep` keeps the members' outputs for later calls."""
        ensemble = version.ensemble("")
        outputs = []
        for place, key in enumerate(ensemble.member_keys):
            raw = self._raw.get(key)
            if raw is None:
                raw = ensemble.predict_member(place, self.features).raw
                if keep:
                    self._raw[key] = raw
            outputs.append(MemberOutput(raw, "", 0.0))
        return ensemble.combine(outputs).score

    def alerts(self, version: Version, *, keep: bool = False) -> Bools:
        """``(n,) bool``."""
        return np.asarray(self.score(version, keep=keep) >= version.manifest.thresholds.review)

    def effect(self, before: Bools, after: Bools) -> Effect:
        """The change from the alerts `before` to the alerts `after`."""
        found = [self._cards(after & of) / max(self._cards(before & of), 1) - 1.0 for of in (~self.fraud, self.fraud)]
        cards = self._cards(after) / max(self._cards(before), 1) - 1.0
        transactions = (after & ~self.fraud).sum() / max((before & ~self.fraud).sum(), 1) - 1.0
        return Effect(found[0], found[1], cards, float(transactions))

    def _cards(self, rows: Bools) -> int:
        return len(np.unique(self.card[rows]))

    def at_alert_rate(self, version: Version, review: float, block: float) -> Version:
        """`version` with thresholds that alert and block these shares of the transactions."""
        score = self.score(version, keep=True)
        return version.with_thresholds(*(float(np.quantile(score, 1.0 - share)) for share in (review, block)))


def find_fault(
    truth: Truth, old: Bools, base: Version, kind: Kind, target: float, rng: np.random.Generator
) -> tuple[Fault, Effect]:
    """A fault of `base` whose measured effect against the alerts `old` is harmful, with a rise near `target`.

    Raises:
        AssertionError: no candidate has such an effect.
    """
    for candidate in _candidates(base, kind, truth, rng):
        found = _bisected(truth, old, base, candidate, target)
        if found is not None:
            return found
    raise AssertionError(f"no fault of kind {kind} has the effect")


def _bisected(
    truth: Truth, old: Bools, base: Version, strengths: Sequence[Fault], target: float
) -> tuple[Fault, Effect] | None:
    """The mildest of `strengths` with the effect; the strength is bisected if the rise is too large."""

    def effect(fault: Fault) -> Effect:
        return truth.effect(old, truth.alerts(fault.apply(base)))

    def reached(found: Effect) -> bool:
        return found.false_positives >= target or found.recall <= -MIN_FALL

    if not reached(effect(strengths[-1])):
        return None
    mild: Fault | None = None
    for fault in strengths:
        found = effect(fault)
        if reached(found):
            break
        mild = fault
    if mild is not None:
        for _ in range(BISECTIONS):
            if found.harmful and (found.recall <= -MIN_FALL or found.false_positives <= target + 0.02):
                break
            middle = replace(fault, strength=(fault.strength + mild.strength) / 2)
            between = effect(middle)
            if reached(between):
                fault, found = middle, between
            else:
                mild = middle
    return (fault, found) if found.harmful else None


def _candidates(base: Version, kind: Kind, truth: Truth, rng: np.random.Generator) -> Iterator[list[Fault]]:
    """Lists of faults of one member, from mild to severe, in random order."""
    manifest = base.manifest
    members = [m for m in manifest.members if m.weight > 0]
    pairs = [(m.name, name) for m in members for name in m.inputs]
    rng.shuffle(pairs)
    names = [m.name for m in members]
    rng.shuffle(names)
    if kind == "inverted_score":  # the smaller its weight, the less it does
        for name in names:
            yield [Fault(kind, name, None, float(s)) for s in (*1.0 / LADDER[::-1], 1.0, *LADDER[:MODERATE])]
    elif kind == "weight":
        for name, up in itertools.product(names, (True, False)):
            yield [Fault(kind, name, None, float(step)) for step in (LADDER if up else 1.0 / LADDER)[: 2 * MODERATE]]
    elif kind == "scale":
        for (name, of), up in itertools.product(pairs, (True, False)):
            steps = LADDER if up else 1.0 / LADDER
            yield [Fault(kind, name, of, float(step)) for step in steps]
    elif kind == "category_map":
        for (name, of), mapping in itertools.product(pairs, ("reversed", "shifted")):
            if of == CATEGORY:
                yield [Fault(kind, name, of, float(step), mapping) for step in (1.0, *LADDER[:MODERATE])]
    else:
        for name, of in pairs:
            column = truth.features[:, manifest.features.index(of)]
            if np.isnan(column).mean() < 0.02:
                continue
            middle, low, high = np.nanquantile(column, (0.5, 0.0, 1.0))
            for end in (high, low):
                yield [Fault(kind, name, of, float(middle + (end - middle) * step)) for step in np.linspace(0, 1, 9)]
