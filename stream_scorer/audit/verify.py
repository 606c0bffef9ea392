"""Verify an archive: its files, its records, and its place after another archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.audit.archive import Archive
from stream_scorer.audit.findings import AuditReport, Findings
from stream_scorer.audit.integrity import Integrity, check_previous
from stream_scorer.audit.recomputation import Models, Recomputation
from stream_scorer.audit.records import RecordCheck
from stream_scorer.audit.signature import Key, check_signature
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import ArtifactError, UsageError
from stream_scorer.spec.model import CheckedSpec


@dataclass(frozen=True, slots=True)
class Expected:
    """What the archive is compared with: all optional.

    `previous` is the archive before it, `digest` the digest of its seal as it was kept elsewhere, `key` the key of
    its signature, and `models` the folder ``ensembles`` of another archive, for an archive without models. `specs` are
    pipeline specs; each is compared with the decisions whose lineage states its hash.
    """

    previous: Path | None = None
    digest: str = ""
    key: Key | None = None
    models: Path | None = None
    specs: Sequence[CheckedSpec] = ()


def verify_archive(
    folder: Path, expected: Expected, tolerance: float, on_progress: Callable[[str, int, int], None] | None = None
) -> AuditReport:
    """Check the archive in `folder` and report the differences.

    Args:
        tolerance: tolerated difference of recomputed numbers; only the same machine gives the same bits.
        on_progress: is called with the stage, the records so far and their number.

    Raises:
        UsageError: there is no archive. CheckFailed: its seal is malformed.
    """
    archive, findings = Archive(folder), Findings()
    total = sum(part.records for part in archive.seal.parts)

    def stage(name: str, records: int) -> Callable[[int], None] | None:
        return None if on_progress is None else lambda done: on_progress(name, done, records)

    Integrity(archive, findings, stage("checking files", total)).check()
    if expected.digest and expected.digest != archive.stored.digest:
        findings.add("seal", f"the digest of the seal is {archive.stored.digest}, but {expected.digest} is expected")
    signature = check_signature(folder, archive.stored.digest, expected.key, findings)
    if expected.previous is not None:
        Archive(expected.previous)  # a folder that is not an archive is a mistake of the user, not a difference
        try:
            check_previous(archive, expected.previous, findings)
        except UsageError as error:
            findings.add("previous", f"the archives cannot be compared to their end: {error.message}")
    elif archive.seal.previous:
        findings.note(f"it continues the archive {archive.seal.previous[:12]}…, which was not given (--after)")
    models = Models(_models(archive, expected.models), findings)
    decided = sum(
        part.records for topic in ("lineage", "contributions", "scores") for part in archive.seal.of_topic(topic)
    )
    for spec in expected.specs:
        if spec.sha256 not in archive.seal.spec_hashes:
            findings.note(f"the spec {spec.spec.name} {spec.sha256[:12]}… decided nothing in this archive")
    recomputation = Recomputation(models, tolerance, expected.specs)
    check = RecordCheck(archive, recomputation, findings, stage("checking scores", decided))
    try:
        check.check()
    except UsageError as error:
        findings.add("file", f"the records cannot be read to their end: {error.message}")
    records: dict[str, int] = {}
    for part in archive.seal.parts:
        records[part.topic] = records.get(part.topic, 0) + part.records
    return AuditReport(
        digest=archive.seal.digest,
        since=archive.seal.since,
        until=archive.seal.until,
        records=records,
        scores=dict(check.scores),
        recomputed=recomputation.recomputed,
        signature=signature,
        notes=findings.notes,
        different=findings.different,
        by_kind=findings.by_kind,
        first=findings.first,
        not_recomputed=recomputation.not_recomputed,
        undecided=check.undecided,
    )


def _models(archive: Archive, elsewhere: Path | None) -> Callable[[str, str, str], Ensemble | None]:
    """Loads a version from the archive, or from the folder `elsewhere`; None if neither has it."""

    def load(ensemble: str, version: str, manifest_sha256: str) -> Ensemble | None:
        archived = next((v for v in archive.versions(ensemble, version) if v.manifest_sha256 == manifest_sha256), None)
        if archived is None:
            return None
        folder = archive.model_folder(archived)
        if folder is None and elsewhere is not None:
            folder = elsewhere / manifest_sha256
        if folder is None or not folder.exists():
            return None
        loaded = Ensemble.load(folder, version=version)
        if loaded.digest != manifest_sha256:
            raise ArtifactError(
                f"{folder} has manifest {loaded.digest[:12]}…, but the version that decided has "
                f"{manifest_sha256[:12]}…",
                code="artifact_digest",
            )
        return loaded

    return load
