"""Ensembles kept on local disk by content, so that a scorer starts without the registry.

    <root>/sha256/<digest>          one file per distinct member or manifest, read-only
    <root>/ensembles/<digest>/      one folder per manifest digest, hard links (or copies) to the files above
    <root>/resolved/<key>.json      what a reference meant when the registry was last asked

Everything is written beside its place and renamed into it, and digests are verified on every use: several scorers
may share a cache, and a damaged file is fetched again instead of served.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from stream_scorer.ensemble.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MAX_MEMBER_BYTES,
    Manifest,
    manifest_digest,
    parse_manifest,
    read_bounded,
    read_manifest,
    read_members,
    sha256_hex,
)
from stream_scorer.errors import ArtifactError

# Bytes of one file of an ensemble, by its name.
Fetch = Callable[[str], bytes]


class Resolution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `reference` meant at the registry `tracking_uri`."""

    reference: str
    tracking_uri: str
    version: str
    manifest_sha256: str


class EnsembleCache:
    """The cache in the folder `root`, made when first written. Raises `ArtifactError` where the disk refuses."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def store(self, fetch: Fetch, manifest_sha256: str | None) -> tuple[Path, str]:
        """The folder of an ensemble and its manifest's digest, fetching only files that are not here yet.

        `manifest_sha256` is the digest the registry vouches for, if it does.

        Raises:
            ArtifactError: a file is not what its digest says, or the manifest is malformed.
        """
        data = self._blob(manifest_sha256) if manifest_sha256 else None
        if data is None:
            data = fetch(MANIFEST_FILE)
        digest = sha256_hex(data)
        if manifest_sha256 and digest != manifest_sha256:
            raise ArtifactError(
                f"the manifest has sha256 {digest[:12]}…, the registry says {manifest_sha256[:12]}…",
                code="artifact_digest",
                hint="It was altered after it was registered: register the ensemble again.",
            )
        manifest = parse_manifest(data, source="the registered manifest")
        if manifest_digest(manifest) != digest:
            raise ArtifactError("the registered manifest is not in canonical form")
        self._keep(digest, data)
        for member in manifest.members:
            if self._blob(member.sha256) is not None:
                continue
            content = fetch(member.path)
            if sha256_hex(content) != member.sha256:
                raise ArtifactError(
                    f"member {member.name!r} does not have the digest the manifest says",
                    code="artifact_digest",
                    hint="It was altered after it was registered: register the ensemble again.",
                )
            self._keep(member.sha256, content)
        return self._view(digest, manifest), digest

    def find(self, manifest_sha256: str) -> Path | None:
        """The folder of an ensemble that is here whole, else None."""
        path = self._root / "ensembles" / manifest_sha256
        try:
            manifest = read_manifest(path)
            read_members(path, manifest)
        except ArtifactError:
            return None
        return path if manifest_digest(manifest) == manifest_sha256 else None

    def find_head(self, head: str) -> Path | None:
        """The folder of the one ensemble that is here and whose manifest's digest begins with `head`, else None."""
        if not head or not set(head) <= set("0123456789abcdef"):
            return None
        found = [path.name for path in (self._root / "ensembles").glob(f"{head}*")]
        return self.find(found[0]) if len(found) == 1 else None

    def remember(self, resolution: Resolution) -> None:
        """Keep what a reference means now."""
        path = self._resolution_path(resolution.reference, resolution.tracking_uri)
        self._write(path, msgspec.json.encode(resolution) + b"\n")

    def recall(self, reference: str, tracking_uri: str) -> Resolution | None:
        """What `reference` meant when it was last remembered, else None."""
        try:
            data = read_bounded(self._resolution_path(reference, tracking_uri), 1_000_000)
            resolution = msgspec.json.decode(data, type=Resolution)
        except (ArtifactError, msgspec.DecodeError):
            return None
        return resolution if (resolution.reference, resolution.tracking_uri) == (reference, tracking_uri) else None

    def _resolution_path(self, reference: str, tracking_uri: str) -> Path:
        key = sha256_hex(f"{tracking_uri}\n{reference}".encode())
        return self._root / "resolved" / f"{key[:32]}.json"

    def _blob(self, digest: str) -> bytes | None:
        try:
            data = read_bounded(self._root / "sha256" / digest, max(MAX_MEMBER_BYTES, MAX_MANIFEST_BYTES))
        except ArtifactError:
            return None
        return data if sha256_hex(data) == digest else None

    def _keep(self, digest: str, data: bytes) -> None:
        if self._blob(digest) is None:
            self._write(self._root / "sha256" / digest, data)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).chmod(0o444)
            Path(file.name).replace(path)
        except OSError as error:
            raise ArtifactError(f"cannot write to the ensemble cache {self._root}: {error}") from None

    def _view(self, digest: str, manifest: Manifest) -> Path:
        found = self.find(digest)
        if found is not None:
            return found
        path = self._root / "ensembles" / digest
        try:
            path.parent.mkdir(exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
            made.chmod(0o755)
            _link(self._root / "sha256" / digest, made / MANIFEST_FILE)
            for member in manifest.members:
                _link(self._root / "sha256" / member.sha256, made / member.path)
            if path.exists():
                # Damaged, or it would have been found. Moved aside first: a reader sees the old one or the new one.
                aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=".old-"))
                path.replace(aside / "damaged")
                shutil.rmtree(aside)
            # Another process may have been quicker; what stands there then is as good, and checked below.
            with contextlib.suppress(OSError):
                made.rename(path)
            shutil.rmtree(made, ignore_errors=True)
        except OSError as error:
            raise ArtifactError(f"cannot write to the ensemble cache {self._root}: {error}") from None
        found = self.find(digest)
        if found is None:
            raise ArtifactError(f"cannot make the folder {path} of the ensemble cache")
        return found


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        # A file system without hard links.
        shutil.copyfile(source, target)
