"""A content-addressed cache of ensembles on local disk, so that a scorer can start without the registry.

    <root>/sha256/<digest>          one file per distinct member or manifest, read-only
    <root>/ensembles/<digest>/      one folder per manifest digest, hard links (or copies) to the files above
    <root>/manifests/<digest>       manifests of versions that were only described, not loaded
    <root>/resolved/<key>.json      the last known resolution of a reference

Files are written under a temporary name and renamed, and digests are verified on every use: several scorers can share
a cache, and a damaged file is fetched again instead of served. `stream_scorer.ensemble.cache_cleanup` bounds its size.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from stream_scorer.connections import without_credentials
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
from stream_scorer.structs import prepare

# Bytes of one file of an ensemble, by its name.
Fetch = Callable[[str], bytes]


class Resolution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version and manifest that `reference` resolved to at the registry `tracking_uri`.

    On disk, the address of the registry has no user, password and query.
    """

    reference: str
    tracking_uri: str
    version: str
    manifest_sha256: str


class EnsembleCache:
    """The cache in the folder `root`, created by the first write. Raises `ArtifactError` if a write fails."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def store(self, fetch: Fetch, manifest_sha256: str | None) -> tuple[Path, str]:
        """Return the folder of an ensemble and the digest of its manifest; fetches only files that are not cached.

        `manifest_sha256` is the digest recorded in the registry, if any.

        Raises:
            ArtifactError: a file does not match its digest, or the manifest is malformed.
        """
        data, manifest, digest = self._manifest(fetch, manifest_sha256)
        self._save_blob(digest, data)
        for member in manifest.members:
            if self._blob(member.sha256) is not None:
                self._mark_used(self._root / "sha256" / member.sha256)
                continue
            content = fetch(member.path)
            if sha256_hex(content) != member.sha256:
                raise ArtifactError(
                    f"member {member.name!r} does not match its digest in the manifest",
                    code="artifact_digest",
                    hint="It was altered after it was registered: register the ensemble again.",
                )
            self._save_blob(member.sha256, content)
        return self._view(digest, manifest), digest

    def store_manifest(self, fetch: Fetch, manifest_sha256: str | None) -> tuple[Manifest, str]:
        """Return the manifest of an ensemble and its digest, without the members; see `store`."""
        data, manifest, digest = self._manifest(fetch, manifest_sha256)
        path = self._root / "manifests" / digest
        if self._blob(digest, "manifests") is None:
            self._write(path, data)
        else:
            self._mark_used(path)
        return manifest, digest

    def _manifest(self, fetch: Fetch, manifest_sha256: str | None) -> tuple[bytes, Manifest, str]:
        """The manifest, from the cache or else fetched, and checked. Raises `ArtifactError`."""
        data = self._cached_manifest(manifest_sha256) if manifest_sha256 else None
        if data is None:
            data = fetch(MANIFEST_FILE)
        digest = sha256_hex(data)
        if manifest_sha256 and digest != manifest_sha256:
            raise ArtifactError(
                f"the manifest has sha256 {digest[:12]}…, but the registry records {manifest_sha256[:12]}…",
                code="artifact_digest",
                hint="It was altered after it was registered: register the ensemble again.",
            )
        manifest = parse_manifest(data, source="the registered manifest")
        if manifest_digest(manifest) != digest:
            raise ArtifactError("the registered manifest is not in canonical form")
        return data, manifest, digest

    def _cached_manifest(self, digest: str) -> bytes | None:
        return self._blob(digest) or self._blob(digest, "manifests")

    def find_manifest(self, manifest_sha256: str) -> Manifest | None:
        """The cached manifest with this digest, else None."""
        data = self._cached_manifest(manifest_sha256)
        return None if data is None else parse_manifest(data, source="the cached manifest")

    def find(self, manifest_sha256: str) -> Path | None:
        """The folder of a completely cached ensemble, else None."""
        if not set(manifest_sha256) <= set("0123456789abcdef"):  # from a record
            return None
        path = self._root / "ensembles" / manifest_sha256
        try:
            manifest = read_manifest(path)
            read_members(path, manifest)
        except ArtifactError:
            return None
        if manifest_digest(manifest) != manifest_sha256:
            return None
        self._mark_used(path)
        return path

    def find_head(self, head: str) -> Path | None:
        """The folder of the only cached ensemble whose manifest digest begins with `head`, else None."""
        if not head or not set(head) <= set("0123456789abcdef"):
            return None
        matches = [path.name for path in (self._root / "ensembles").glob(f"{head}*")]
        return self.find(matches[0]) if len(matches) == 1 else None

    def save_resolution(self, resolution: Resolution) -> None:
        """Store the current resolution of a reference."""
        address = without_credentials(resolution.tracking_uri)
        path = self._resolution_path(resolution.reference, address)
        self._write(path, msgspec.json.encode(msgspec.structs.replace(resolution, tracking_uri=address)) + b"\n")

    def load_resolution(self, reference: str, tracking_uri: str) -> Resolution | None:
        """The last stored resolution of `reference`, else None."""
        address = without_credentials(tracking_uri)
        try:
            data = read_bounded(self._resolution_path(reference, address), 1_000_000)
            resolution = msgspec.json.decode(data, type=Resolution)
        except (ArtifactError, msgspec.DecodeError):
            return None
        return resolution if (resolution.reference, resolution.tracking_uri) == (reference, address) else None

    def _resolution_path(self, reference: str, tracking_uri: str) -> Path:
        key = sha256_hex(f"{tracking_uri}\n{reference}".encode())
        return self._root / "resolved" / f"{key[:32]}.json"

    def _blob(self, digest: str, folder: str = "sha256") -> bytes | None:
        try:
            data = read_bounded(self._root / folder / digest, max(MAX_MEMBER_BYTES, MAX_MANIFEST_BYTES))
        except ArtifactError:
            return None
        return data if sha256_hex(data) == digest else None

    def _save_blob(self, digest: str, data: bytes) -> None:
        path = self._root / "sha256" / digest
        if self._blob(digest) is None:
            self._write(path, data)
        else:
            self._mark_used(path)

    def _mark_used(self, path: Path) -> None:
        """Set the time of the last use, by which `cache_cleanup` selects what to remove."""
        with contextlib.suppress(OSError):  # it belongs to another user, or was removed just now
            os.utime(path)

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
        cached = self.find(digest)
        if cached is not None:
            return cached
        path = self._root / "ensembles" / digest
        try:
            path.parent.mkdir(exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
            temporary.chmod(0o755)
            _link(self._root / "sha256" / digest, temporary / MANIFEST_FILE)
            for member in manifest.members:
                _link(self._root / "sha256" / member.sha256, temporary / member.path)
            if path.exists():
                # The folder is damaged. Move it aside first, so that a reader sees either the old or the new one.
                aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=".old-"))
                path.replace(aside / "damaged")
                shutil.rmtree(aside)
            # Another process may have created the folder first; its content is equal and checked below.
            with contextlib.suppress(OSError):
                temporary.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise ArtifactError(f"cannot write to the ensemble cache {self._root}: {error}") from None
        cached = self.find(digest)
        if cached is None:
            raise ArtifactError(f"cannot create the folder {path} of the ensemble cache")
        return cached


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        # The file system does not support hard links.
        shutil.copyfile(source, target)


prepare(globals())
