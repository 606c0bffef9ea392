"""A loaded ensemble: features in, scores and contributions out.

ensemble = Ensemble.load(Path("champion"), version="7")
scored = ensemble.score(features)      # (n, n_features) float64, NaN is missing
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream_scorer.arrays import Bools, Floats
from stream_scorer.ensemble import pair
from stream_scorer.ensemble.attribution import Explainer
from stream_scorer.ensemble.combine import Combiner, References, Scenarios
from stream_scorer.ensemble.manifest import Manifest, manifest_digest, member_key, read_manifest, read_members
from stream_scorer.ensemble.members import Member, load_member
from stream_scorer.ensemble.preprocess import Preprocess
from stream_scorer.ensemble.probabilities import keep_probabilities
from stream_scorer.errors import ArtifactError

# On another processor, the same libraries may differ in the last bit of exp() or of a float32 leaf sum (6e-8 of a
# margin around 5). A wrong scale, column or weight changes scores by far more.
SELF_TEST_TOLERANCE = 1e-6
# Rows of the warm-up, which compiles every loop and loads the memory pages of all trees before the first transaction.
_WARM_UP_ROWS = 256


@dataclass(slots=True)
class Scored:
    """The result of scoring n rows with m members in manifest order.

    Attributes:
        member_scores: ``(n, m)`` calibrated probabilities, NaN where missing.
        weights: ``(n, m)`` renormalised over the members present in the row; a missing one has 0.
        contributions: ``(n, m)`` in units of z; a missing member has 0. Where z is not NaN, base + sum == z to 1e-9.
        base, z, score: ``(n,)``, NaN where the quorum failed.
        coverage: ``(n,)`` share of the original weight that is present.
        failures: member -> reason, for members missing from at least one row of this batch.
        member_seconds: ``(m,)`` wall-clock seconds each member took, preprocess included.
    """

    member_scores: Floats
    weights: Floats
    contributions: Floats
    base: Floats
    z: Floats
    score: Floats
    coverage: Floats
    failures: dict[str, str]
    member_seconds: Floats


@dataclass(slots=True, frozen=True)
class MemberOutput:
    """One member's output for n rows: `raw` ``(n,)`` probabilities, NaN where missing; the reason; the duration."""

    raw: Floats
    reason: str
    seconds: float

    @classmethod
    def none(cls, rows: int, reason: str) -> MemberOutput:
        """An output of NaN for all rows, with `reason`."""
        return cls(np.full(rows, np.nan), reason, 0.0)


@dataclass(slots=True, frozen=True)
class _Loaded:
    name: str
    member: Member
    preprocess: Preprocess


class Ensemble:
    """Immutable and safe to use from several threads at once.

    Attributes:
        manifest: the manifest it was loaded from; `digest` is the sha256 of its canonical bytes.
        version: its version in the registry.
        explainer: attributes member outputs to inputs for alerts; None unless `load` was asked for it.
        notice: what a scorer logs as a warning when this version begins to decide; empty unless set after loading.
        name, feature_names, member_names: as in the manifest. member_keys: see `manifest.member_key`.
    """

    def __init__(
        self, manifest: Manifest, members: Sequence[Member], *, version: str, explainer: Explainer | None = None
    ) -> None:
        """Create an ensemble from loaded members, without checks; use `load` for files."""
        self.manifest = manifest
        self.version = version
        self.explainer = explainer
        self.notice = ""
        self.name = manifest.name
        self.feature_names = list(manifest.features)
        self.member_names = manifest.member_names
        self.member_keys = [member_key(spec) for spec in manifest.members]
        self.digest = manifest_digest(manifest)
        self._combiner = Combiner.of(manifest)
        self._members = [
            _Loaded(spec.name, member, Preprocess(manifest.features, spec.inputs, spec.preprocess))
            for spec, member in zip(manifest.members, members, strict=True)
        ]

    @classmethod
    def load(cls, directory: Path, *, version: str, explain: bool = False) -> Ensemble:
        """Load the ensemble in `directory`, run its self-test and warm it up; with `explain`, also its `explainer`.

        Raises:
            ArtifactError: a file is missing, altered or malformed, or the self-test fails.
        """
        manifest = read_manifest(directory)
        members = []
        for spec, data in zip(manifest.members, read_members(directory, manifest), strict=True):
            try:
                members.append(load_member(spec.format, data, len(spec.inputs)))
            except ArtifactError as error:
                raise ArtifactError(
                    f"{directory / spec.path}: member {spec.name!r}: {error.message}", code=error.code, hint=error.hint
                ) from None
        explainer = Explainer(directory, manifest) if explain else None
        ensemble = cls(manifest, members, version=version, explainer=explainer)
        ensemble.self_test()
        return ensemble

    def score(self, features: Floats) -> Scored:
        """Score a batch: ``(n, n_features) float64``, columns as `feature_names`, NaN is missing.

        A member that raises is missing for the whole batch; an output of NaN or outside [0, 1] is missing for that row.
        `failures` names both.

        Raises:
            ValueError: the matrix does not have the manifest's columns.
        """
        features = self.checked(features)
        return self.combine([self.predict_member(index, features) for index in range(len(self._members))])

    def checked(self, features: Floats) -> Floats:
        """`features` as C-contiguous float64. Raises `ValueError`, see `score`."""
        features = np.ascontiguousarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.feature_names):
            raise ValueError(f"a matrix of shape {features.shape} for {len(self.feature_names)} features")
        return features

    def predict_member(self, index: int, features: Floats) -> MemberOutput:
        """The output of the member at `index` for `checked` features. Never raises; see `score`."""
        raw, started = np.empty(len(features), np.float64), time.perf_counter()
        reason = _predict(self._members[index], features, raw)
        return MemberOutput(raw, reason, time.perf_counter() - started)

    def cannot_hang(self, index: int) -> bool:
        """Whether the member at `index` is computed by loops of this package, which always end; see `Member`."""
        return bool(getattr(self._members[index].member, "own_loops", False))

    def combine(self, outputs: Sequence[MemberOutput]) -> Scored:
        """Combine the outputs of the members, given in manifest order."""
        raw = np.column_stack([output.raw for output in outputs])
        seconds = np.array([output.seconds for output in outputs])
        failures = {name: a.reason for name, a in zip(self.member_names, outputs, strict=True) if a.reason}
        member_scores, weights, contributions, base, z, score, coverage = self._combiner.combine(raw)
        return Scored(member_scores, weights, contributions, base, z, score, coverage, failures, seconds)

    def linked(self, member_scores: Floats, references: References | None = None) -> Floats:
        """Calibrated scores ``(n, m)`` on the scale of the link; see `Combiner.linked`."""
        return self._combiner.linked(member_scores, references)

    def left_out_scores(self, scored: Scored) -> Floats:
        """See the function `left_out_scores`; this method reuses the combiner."""
        return self._combiner.left_out(scored.member_scores, scored.score)

    def what_if(self, member_scores: Floats, theirs: Floats, scenarios: Scenarios) -> Floats:
        """See `Combiner.what_if`."""
        return self._combiner.what_if(member_scores, theirs, scenarios)

    def incomplete(self, member_scores: Floats) -> Bools:
        """See `Combiner.incomplete`."""
        return self._combiner.incomplete(member_scores)

    def finish(self, z: Floats, incomplete: Bools) -> Floats:
        """See `Combiner.finish`."""
        return self._combiner.finish(z, incomplete)

    def check_features(self, features: Sequence[str], feature_hash: str) -> None:
        """Raise `ArtifactError` unless the ensemble was trained on this feature vector."""
        wanted, given = self.manifest.features, list(features)
        if wanted != given:
            odd = sorted(set(wanted) ^ set(given))
            difference = f"they differ in {', '.join(odd[:5])}" if odd else "their order differs"
            raise ArtifactError(
                f"ensemble {self.name} {self.version} was trained on features other than the spec's: {difference}",
                code="artifact_features",
                hint="Serve it with the spec it was trained with, or train an ensemble with this spec.",
            )
        if self.manifest.feature_hash != feature_hash:
            raise ArtifactError(
                f"ensemble {self.name} {self.version} was trained on features of the same names but other definitions",
                code="artifact_features",
                hint="A view, window or field of the spec has changed since: train with the current spec.",
            )

    def check_name(self, registered: str) -> None:
        """Raise `ArtifactError` if the manifest has another name than the one under which the ensemble is registered.

        Commands have the registered name, and score summaries that of the manifest: the watch would never judge it.
        """
        if self.name != registered:
            raise ArtifactError(
                f"the ensemble is named {self.name} in its manifest, and {registered} in the registry: the monitor "
                "would compare none of its scores",
                code="artifact_name",
                hint=f"Register it as {self.name}, or train or compose it as {registered} and register that.",
            )

    def self_test(self) -> None:
        """Score the manifest's self-test and warm up. Raises `ArtifactError` naming the first difference."""
        test = self.manifest.self_test
        features = _matrix(test.features)
        scored = self.score(features)
        for index, name in enumerate(self.member_names):
            expected = _matrix([[row[index]] for row in test.member_scores])[:, 0]
            hint = f" ({scored.failures[name]})" if name in scored.failures else ""
            self._compare(f"member {name!r}{hint}", scored.member_scores[:, index], expected)
        self._compare("the final score", scored.score, _matrix([[value] for value in test.score])[:, 0])
        self.score(np.tile(features, (math.ceil(_WARM_UP_ROWS / len(features)), 1))[:_WARM_UP_ROWS])
        self.left_out_scores(scored)
        self._warm_up_comparison(features, scored)

    def _warm_up_comparison(self, features: Floats, scored: Scored) -> None:
        """Compile what a comparison with another version calls, see `pair`."""
        ones = np.ones((1, len(self.member_names)))
        self.what_if(scored.member_scores, scored.member_scores, Scenarios(ones > 0.0, ones, ones))
        self.finish(scored.z, self.incomplete(scored.member_scores))
        pair.warm_up(self.manifest, features)

    def _compare(self, subject: str, got: Floats, expected: Floats) -> None:
        same = np.isclose(got, expected, rtol=0.0, atol=SELF_TEST_TOLERANCE, equal_nan=True)
        if not same.all():
            row = int(np.argmin(same))
            raise ArtifactError(
                f"ensemble {self.name} {self.version} fails its self-test: row {row}: {subject} is {got[row]:.9g}, "
                f"the manifest expects {expected[row]:.9g}",
                code="artifact_self_test",
                hint="The members do not score as they did when they were trained: check library versions, or retrain.",
            )


def left_out_scores(scored: Scored, manifest: Manifest) -> Floats:
    """``(n, m)``: the final score with each member left out and the weights renormalised over the rest."""
    return Combiner.of(manifest).left_out(scored.member_scores, scored.score)


def _predict(loaded: _Loaded, features: Floats, out: Floats) -> str:
    """Write one member's probabilities to `out` ``(n,)``, NaN where missing. Returns why any are missing, or ''."""
    try:
        probability = loaded.member.predict(loaded.preprocess.apply(features))
    except Exception as error:  # no failure of one member may leave the transaction without a score
        out[:] = np.nan
        return f"{type(error).__name__}: {error}"
    if probability.shape != out.shape:
        out[:] = np.nan
        return f"returned shape {probability.shape} for {out.shape[0]} rows"
    out[:] = probability
    wrong = keep_probabilities(out)
    return f"NaN or outside [0, 1] in {wrong} of {out.shape[0]} rows" if wrong else ""


def _matrix(rows: Sequence[Sequence[float | None]]) -> Floats:
    return np.array([[math.nan if value is None else value for value in row] for row in rows], np.float64)
