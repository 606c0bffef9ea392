"""The manifests and models of the versions that decided, as files of an archive."""

from __future__ import annotations

from pathlib import Path

from stream_scorer.audit.archive import MODELS
from stream_scorer.audit.files import writable
from stream_scorer.audit.seal import ArchivedVersion, SealedFile
from stream_scorer.ensemble.manifest import (
    MANIFEST_FILE,
    manifest_bytes,
    manifest_digest,
    read_manifest,
    read_members,
    sha256_hex,
)
from stream_scorer.ensemble.registry import parse_reference, recorded
from stream_scorer.errors import ArtifactError


def find_version(
    ensemble: str, version: str, manifest_sha256: str, tracking_uri: str, cache: Path, reference: str
) -> Path:
    """The folder of the version with exactly this manifest: from the folder `reference`, the cache or the registry.

    Raises:
        ArtifactError: none of them has it. RegistryUnavailable: the registry does not answer.
    """
    folder = parse_reference(reference).folder
    return recorded(ensemble, version, manifest_sha256, tracking_uri or None, cache, folder)


def keep_version(
    root: Path, folder: Path, ensemble: str, version: str, manifest_sha256: str, *, with_models: bool
) -> ArchivedVersion:
    """Copy the version in `folder` into the archive in `root`: its manifest, and its models if wanted.

    Raises:
        ArtifactError: the folder does not contain this version, or a file does not match its digest.
        UsageError: the archive cannot be written.
    """
    manifest = read_manifest(folder)
    if manifest_digest(manifest) != manifest_sha256:
        raise ArtifactError(
            f"{folder} has manifest {manifest_digest(manifest)[:12]}…, but {ensemble} {version} that decided has "
            f"{manifest_sha256[:12]}…",
            code="artifact_digest",
        )
    content = {MANIFEST_FILE: manifest_bytes(manifest)}
    if with_models:
        paths = [member.path for member in manifest.members]
        content |= dict(zip(paths, read_members(folder, manifest), strict=True))
    files = []
    for name, data in content.items():
        path = root / MODELS / manifest_sha256 / name
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        files.append(SealedFile(str(path.relative_to(root)), len(data), sha256_hex(data)))
    return ArchivedVersion(ensemble, version, manifest_sha256, files)
