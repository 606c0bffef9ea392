"""Recomputes archived scores, each with the version whose manifest its lineage states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from stream_scorer.audit.findings import Findings
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import ArtifactError, SettingsError
from stream_scorer.records import Score
from stream_scorer.replay.decisions import describe
from stream_scorer.replay.recorded import Recorded
from stream_scorer.replay.verify import Verifier
from stream_scorer.spec.model import CheckedSpec

_BATCH = 4_096


class Models:
    """The versions that decided, loaded once each; one that cannot be loaded is one difference."""

    def __init__(self, load: Callable[[str, str, str], Ensemble | None], findings: Findings) -> None:
        """`load` returns the version with a manifest; None if it is not there. Raises `ArtifactError`."""
        self._load, self._findings = load, findings
        self._loaded: dict[tuple[str, str, str], Ensemble | None] = {}

    def has(self, ensemble: str, version: str, manifest_sha256: str) -> bool:
        """Whether the version can be loaded."""
        key = ensemble, version, manifest_sha256
        if key not in self._loaded:
            self._loaded[key] = None
            try:
                self._loaded[key] = self._load(*key)
            except ArtifactError as error:
                self._findings.add("model", f"{ensemble} {version} cannot be loaded: {error.message}")
            except SettingsError as error:  # a library is not installed, which is no fault of the archive
                hint = f" {error.hint}" if error.hint else ""
                self._findings.note(f"scores of {ensemble} {version} are not recomputed: {error.message}.{hint}")
            else:
                if self._loaded[key] is None:
                    self._findings.note(f"scores of {ensemble} {version} are not recomputed: its models are not here")
        return self._loaded[key] is not None

    def get(self, ensemble: str, version: str, manifest_sha256: str) -> Ensemble:
        """A version that `has` found."""
        found = self._loaded[ensemble, version, manifest_sha256]
        assert found is not None
        return found


class Recomputation:
    """Recomputes the scores whose versions `models` has.

    A registry that was created again gives a number to another manifest, so each manifest has its own verifier.
    """

    def __init__(self, models: Models, tolerance: float, specs: Sequence[CheckedSpec]) -> None:
        self._models, self._tolerance, self._specs = models, tolerance, specs
        self._verifiers: dict[str, Verifier] = {}
        self._pending: dict[str, tuple[list[Score], list[Recorded]]] = {}

    def add(self, score: Score, recorded: Recorded, manifest_sha256: str) -> None:
        """Recompute one score, by the version with this manifest, now or later."""
        contribution = recorded.contribution
        if not self._models.has(contribution.ensemble, contribution.version, manifest_sha256):
            return
        scores, records = self._pending.setdefault(manifest_sha256, ([], []))
        scores.append(score)
        records.append(recorded)
        if len(scores) >= _BATCH:
            self._flush(manifest_sha256)

    def finish(self, findings: Findings) -> None:
        """Recompute what is left, and report the differences."""
        for manifest_sha256 in self._pending:
            self._flush(manifest_sha256)
        reports = [verifier.report() for verifier in self._verifiers.values()]
        if self.not_recomputed:
            findings.note(f"decisions that are not recomputed: {describe(self.not_recomputed)}")
        different = sum(report.different for report in reports)
        if different:
            by_what = sum((Counter(report.by_what) for report in reports), Counter[str]())
            what = ", ".join(f"{name}: {count:,}" for name, count in by_what.items())
            first = "; ".join([example for report in reports for example in report.examples][:3])
            findings.add("score", f"{different:,} scores differ from their recomputation ({what}): {first}", different)

    @property
    def recomputed(self) -> int:
        """The number of scores that were recomputed."""
        return sum(verifier.report().scores for verifier in self._verifiers.values())

    @property
    def not_recomputed(self) -> dict[str, int]:
        """The decisions that were not, or not completely, computed again."""
        reports = (verifier.report() for verifier in self._verifiers.values())
        return dict(sum((Counter(report.not_recomputed) for report in reports), Counter[str]()))

    def _flush(self, manifest_sha256: str) -> None:
        scores, records = self._pending[manifest_sha256]
        self._pending[manifest_sha256] = ([], [])
        if not scores:
            return
        if manifest_sha256 not in self._verifiers:
            self._verifiers[manifest_sha256] = Verifier(self._models.get, self._tolerance, policies=self._specs)
        self._verifiers[manifest_sha256].add(scores, records)
