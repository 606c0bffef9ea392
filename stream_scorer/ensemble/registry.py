"""The MLflow registry, which gives ensembles a name, a version and aliases. Only this module and `tracking` use mlflow.

MLflow serves as a registry and a file store, never as a loader: nothing that it returns is executed, and every file is
checked against its digest in the manifest. mlflow is imported inside functions, so that a scorer that starts from a
folder does not load it.

A reference is a folder (``champion``, ``./champion``, ``/srv/champion``), ``name@alias`` or ``name:version``. The
version of an ensemble that is not registered is ``local-`` and the first digits of its manifest's digest.
"""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from stream_scorer.connections import RegistryAddress, without_credentials
from stream_scorer.ensemble.cache import EnsembleCache, Resolution
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import (
    MANIFEST_FILE,
    MAX_MEMBER_BYTES,
    Manifest,
    manifest_digest,
    read_bounded,
    read_manifest,
    sha256_hex,
)
from stream_scorer.errors import AccessDenied, ArtifactError, RegistryUnavailable, SettingsError
from stream_scorer.observability.scrub import scrub

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = "stream-scorer"
# Folder of the ensemble's files within the run.
ARTIFACT_PATH = "ensemble"
DIGEST_TAG = "stream_scorer.manifest_sha256"
# A healthy registry answers within milliseconds; a scorer with a cache should not wait longer.
HEALTH_TIMEOUT_S = 3.0
# The defaults of mlflow are 7 retries and 120 s, which delay the start of a scorer by minutes if the registry is down.
# Telemetry is off: a scorer connects to configured services only.
_CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output is for results that programs read.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# If the server does not pass files on, each client reads and writes their store itself.
_PROXY = "start the server with --serve-artifacts, so that it reads and writes the files itself."
# Versions per answer of the registry.
_PAGE = 1_000
# Prefix of the versions of ensembles that are not registered.
LOCAL = "local-"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_VERSION = re.compile(r"^([0-9]+|local-[0-9a-f]{12})\Z")

_log = logging.getLogger(__name__)
_environment_lock = threading.Lock()
_environment_users: list[int] = []
# The values that the variables had before; None: it was not set.
_environment_before: dict[str, str | None] = {}


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference to an ensemble: a folder, or a name with either an alias or a version."""

    text: str
    folder: Path | None = None
    name: str = ""
    alias: str = ""
    version: str = ""

    @property
    def registered(self) -> bool:
        """Whether it refers to a version in the registry."""
        return self.folder is None and not self.version.startswith(LOCAL)


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of a registered ensemble. `created_at` is UTC epoch milliseconds."""

    name: str
    version: str
    aliases: list[str]
    created_at: int
    manifest_sha256: str


def parse_reference(text: str) -> Reference:
    """Parse `text`: a folder, ``name@alias`` or ``name:version``.

    A path (with a ``/``, or a leading ``.`` or ``~``) is always a folder. Any other text is a folder if the current
    directory contains it; a folder that looks like a registered reference must contain a manifest, and wins.

    Raises:
        ArtifactError: it is none of these.
    """
    folder = Path(text).expanduser()
    if text.startswith((".", "~")) or "/" in text:
        return Reference(text, folder=folder)
    registered = _parse_registered(text)
    if registered is None and text and folder.is_dir():
        return Reference(text, folder=folder)
    if registered is not None and (folder / MANIFEST_FILE).is_file():
        _log.warning("using the folder %s instead of the registered ensemble with that name", text)
        return Reference(text, folder=folder)
    if registered is None:
        known = text if _NAME.match(text) else "cards"
        raise ArtifactError(
            f"{text!r} is not an ensemble: the current directory has no folder {text!r}, and a registered ensemble is "
            "named with an alias or a version",
            hint=f"Give the path of a folder, or name@alias ({known}@champion), or name:version ({known}:7).",
        )
    return registered


def _parse_registered(text: str) -> Reference | None:
    """The reference if `text` is ``name@alias`` or ``name:version``."""
    name, at, alias = text.partition("@")
    if at and _NAME.match(name) and _NAME.match(alias):
        return Reference(text, name=name, alias=alias)
    name, colon, version = text.partition(":")
    if colon and _NAME.match(name) and _VERSION.match(version):
        return Reference(text, name=name, version=version)
    return None


def register(
    directory: Path, name: str, tracking_uri: str, alias: str | None = None, tags: Mapping[str, str] | None = None
) -> str:
    """Register the ensemble in `directory` as a new version of `name` and return the version.

    The ensemble is loaded and self-tested first. Training parameters, metrics and files are logged as one MLflow run.
    The last step moves `alias`, if given, to the new version.

    Raises:
        ArtifactError: the ensemble does not load, its manifest has another name, or the registry rejects the name or
            alias.
        RegistryUnavailable: the registry does not answer.
    """
    check_registered_name(name, alias)
    ensemble = Ensemble.load(directory, version="")
    ensemble.check_name(name)
    manifest, digest = ensemble.manifest, ensemble.digest
    with connected(tracking_uri) as client:
        run_id = _log_run(client, directory, name, manifest, digest)
        _ensure_registered_model(client, name)
        version = client.create_model_version(
            name,
            source=f"runs:/{run_id}/{ARTIFACT_PATH}",
            run_id=run_id,
            tags={DIGEST_TAG: digest, "stream_scorer.spec_hash": manifest.spec_hash, **(tags or {})},
            await_creation_for=0,
        ).version
        if alias is not None:
            client.set_registered_model_alias(name, alias, str(version))
    return str(version)


def check_registered_name(name: str, alias: str | None) -> None:
    """Raise `ArtifactError` for a name or an alias that a reference cannot contain."""
    if not _NAME.match(name) or (alias is not None and not _NAME.match(alias)):
        raise ArtifactError(f"{name!r} with alias {alias!r} cannot be registered: use letters, digits, '.', '_', '-'")


def find_registered(name: str, manifest_sha256: str, tracking_uri: str) -> str | None:
    """The newest version of `name` with this manifest; None if there is none.

    Raises:
        ArtifactError: the registry rejects the name. RegistryUnavailable: the registry does not answer.
    """
    with connected(tracking_uri) as client:
        found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST_TAG}` = '{manifest_sha256}'")
    return str(max(int(each.version) for each in found)) if found else None


def resolve(reference: str, tracking_uri: str | None, cache_dir: Path, *, stale_alias: bool = True) -> tuple[Path, str]:
    """The folder that holds `reference`, its digests verified, and its version (``local-<digest>`` for a folder).

    If the registry does not answer, the last resolution in the cache is used, with a warning. `stale_alias=False` does
    that for a version only: an alias may have moved since.

    Raises:
        ArtifactError: no such name, alias or version, or a file does not match its digest.
        RegistryUnavailable: the registry does not answer, and the cache does not contain the reference.
        SettingsError: the address of the registry is missing or not http.
    """
    parsed = parse_reference(reference)
    if parsed.folder is not None:
        return parsed.folder, local_version(manifest_digest(read_manifest(parsed.folder)))
    if not parsed.registered:
        return _find_local(parsed, cache_dir), parsed.version
    tracking_uri, cache = _require_registry(reference, tracking_uri), EnsembleCache(cache_dir)
    try:
        with connected(tracking_uri) as client:
            found = _find(client, parsed)
            path, digest = cache.store(
                lambda file: _download(client, tracking_uri, found, file), found.tags.get(DIGEST_TAG)
            )
    except RegistryUnavailable as error:
        if not stale_alias:
            _require_version(parsed, error)
        return _from_cache(cache, parsed, tracking_uri, error)
    cache.save_resolution(Resolution(reference, str(tracking_uri), str(found.version), digest))
    return path, str(found.version)


def resolve_manifest(reference: str, tracking_uri: str | None, cache_dir: Path) -> tuple[Manifest, str]:
    """The manifest of `reference`, its digest verified, and its version. Loads no member; otherwise as `resolve`."""
    parsed = parse_reference(reference)
    if not parsed.registered:
        folder, version = resolve(reference, tracking_uri, cache_dir)
        return read_manifest(folder), version
    tracking_uri, cache = _require_registry(reference, tracking_uri), EnsembleCache(cache_dir)
    # Not the resolution of `resolve`, which promises the members too.
    key = f"manifest of {reference}"
    try:
        with connected(tracking_uri) as client:
            found = _find(client, parsed)
            manifest, digest = cache.store_manifest(
                lambda file: _download(client, tracking_uri, found, file), found.tags.get(DIGEST_TAG)
            )
    except RegistryUnavailable as error:
        known = cache.load_resolution(key, tracking_uri) or cache.load_resolution(reference, tracking_uri)
        cached = cache.find_manifest(known.manifest_sha256) if known else None
        if known is None or cached is None:
            raise
        _log.warning("%s: using %s from the cache, version %s", error.message, reference, known.version)
        return cached, known.version
    cache.save_resolution(Resolution(key, str(tracking_uri), str(found.version), digest))
    return manifest, str(found.version)


def identify(reference: str, tracking_uri: str | None, cache_dir: Path) -> tuple[str, str]:
    """The version of `reference` and the digest of its manifest, without its members, which may be damaged.

    Raises:
        ArtifactError, SettingsError: see `resolve`.
        RegistryUnavailable: the registry does not answer, and `reference` is an alias or not in the cache.
    """
    parsed = parse_reference(reference)
    if not parsed.registered:
        folder, version = resolve(reference, tracking_uri, cache_dir)
        return version, manifest_digest(read_manifest(folder))
    tracking_uri, cache = _require_registry(reference, tracking_uri), EnsembleCache(cache_dir)
    try:
        with connected(tracking_uri) as client:
            found = _find(client, parsed)
            digest = found.tags.get(DIGEST_TAG) or sha256_hex(_download(client, tracking_uri, found, MANIFEST_FILE))
            return str(found.version), digest
    except RegistryUnavailable as error:
        _require_version(parsed, error)
        known = cache.load_resolution(reference, tracking_uri)
        if known is None:
            raise
        return known.version, known.manifest_sha256


def fetch(name: str, version: str, manifest_sha256: str, tracking_uri: str | None, cache_dir: Path) -> Path:
    """The folder of exactly this manifest, its digests verified: from the cache, else from the registry.

    Raises:
        ArtifactError: neither has it, or the registry has another manifest for this version.
        RegistryUnavailable: the registry does not answer.
    """
    cached = EnsembleCache(cache_dir).find(manifest_sha256)
    if cached is not None:
        return cached
    if not version.isdigit():
        raise ArtifactError(
            f"{name} {version} was served from a folder and is not in the cache {cache_dir}",
            hint="Register it: other machines can load it from the registry only.",
        )
    path, _ = resolve(f"{name}:{version}", tracking_uri, cache_dir)
    digest = manifest_digest(read_manifest(path))
    if digest != manifest_sha256:
        raise ArtifactError(f"{name} {version} has manifest {digest[:12]}…, but {manifest_sha256[:12]}… is required")
    return path


def recorded(
    name: str, version: str, manifest_sha256: str, tracking_uri: str | None, cache_dir: Path, folder: Path | None
) -> Path:
    """The folder of the version in a record: `folder` if it has this manifest, else from the cache or the registry.

    Records of earlier releases do not state a manifest (``""``): then the registry decides what the number means, and
    a version that is not registered contains the first digits of its manifest's digest.

    Raises:
        ArtifactError: the version is not found, or a file does not match its digest.
        RegistryUnavailable: the registry does not answer.
    """
    given = "" if folder is None or not folder.exists() else manifest_digest(read_manifest(folder))
    if folder is not None and given and given == manifest_sha256:
        return folder
    if version.startswith(LOCAL):
        if folder is not None and local_version(given) == version and not manifest_sha256:
            return folder
        cache = EnsembleCache(cache_dir)
        cached = cache.find(manifest_sha256) if manifest_sha256 else cache.find_head(version.removeprefix(LOCAL))
        if cached is None:
            raise ArtifactError(
                f"{name} {version} was served from a folder and is not in the cache {cache_dir}",
                hint="Give --ensemble with the folder that served, or --cache of a scorer.",
            )
        return cached
    if manifest_sha256:
        return fetch(name, version, manifest_sha256, tracking_uri, cache_dir)
    return resolve(f"{name}:{version}", tracking_uri, cache_dir)[0]


def local_version(manifest_sha256: str) -> str:
    """The version of an ensemble that is not registered."""
    return f"{LOCAL}{manifest_sha256[:12]}"


def keep(folder: Path, cache_dir: Path) -> tuple[str, str]:
    """Put the ensemble in `folder` into the cache; answers its version (``local-<digest>``) and its manifest's digest.

    Raises:
        ArtifactError: it is not what its manifest says.
    """
    digest = manifest_digest(read_manifest(folder))
    EnsembleCache(cache_dir).store(lambda file: read_bounded(folder / file, MAX_MEMBER_BYTES), digest)
    return local_version(digest), digest


def find_alias(name: str, alias: str, tracking_uri: str) -> str | None:
    """The version that `alias` names; None if there is no such name or alias. Raises `RegistryUnavailable`."""
    with connected(tracking_uri) as client:
        return _find_alias(client, name, alias)


def set_alias(name: str, alias: str, version: str, tracking_uri: str) -> str | None:
    """Move `alias` to a version; returns the one that it named. Raises `ArtifactError` and `RegistryUnavailable`."""
    with connected(tracking_uri) as client:
        before = _find_alias(client, name, alias)
        if before != version:
            client.set_registered_model_alias(name, alias, version)
    return before


def _find_alias(client: MlflowClient, name: str, alias: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if found is None else str(found)


def list_versions(tracking_uri: str, name: str = "") -> list[RegisteredVersion]:
    """The registered versions that carry an ensemble's digest, of `name` or of all, newest first within a name.

    The registry may also hold other people's models, whatever their names: they are never looked up.

    Raises:
        RegistryUnavailable: the registry does not answer.
    """
    wanted = f"tags.`{DIGEST_TAG}` LIKE '%'" + (f" and name = '{name}'" if name else "")
    found: list[ModelVersion] = []
    with connected(tracking_uri) as client:
        page = client.search_model_versions(wanted, max_results=_PAGE)
        found += page
        while page.token:
            page = client.search_model_versions(wanted, max_results=_PAGE, page_token=page.token)
            found += page
        # No reference can name the others.
        found = [each for each in found if _NAME.match(each.name)]
        aliases = {each: client.get_registered_model(each).aliases for each in {version.name for version in found}}
    versions = [
        RegisteredVersion(
            each.name,
            str(each.version),
            sorted(alias for alias, version in aliases[each.name].items() if str(version) == str(each.version)),
            int(each.creation_timestamp),
            each.tags[DIGEST_TAG],
        )
        for each in found
    ]
    return sorted(versions, key=lambda entry: (entry.name, -int(entry.version)))


def _require_registry(reference: str, tracking_uri: str | None) -> str:
    if not tracking_uri:
        if isinstance(tracking_uri, RegistryAddress) and tracking_uri.refusal is not None:
            raise tracking_uri.refusal
        raise SettingsError(
            f"{reference} is in the registry, but no registry is set", hint="Give --mlflow, or the path of a folder."
        )
    return tracking_uri


def _require_version(parsed: Reference, error: RegistryUnavailable) -> None:
    """Raise `RegistryUnavailable` for an alias: it may have moved since it was resolved."""
    if parsed.alias:
        raise RegistryUnavailable(
            f"{error.message}: it is not known which version {parsed.text} is now",
            hint=f"Name the version ({parsed.name}:7): it may be in the cache.",
        ) from error


def _find_local(parsed: Reference, cache_dir: Path) -> Path:
    """The cached folder of a version that is not registered. Raises `ArtifactError`."""
    cached = EnsembleCache(cache_dir).find_head(parsed.version.removeprefix(LOCAL))
    name = None if cached is None else read_manifest(cached).name
    if cached is not None and name == parsed.name:
        return cached
    if cached is not None:
        raise ArtifactError(f"{parsed.version} is a version of {name}, not of {parsed.name}")
    raise ArtifactError(
        f"{parsed.text} was served from a folder and is not in the cache {cache_dir}",
        hint="Give the folder, or --cache of a scorer.",
    )


def _from_cache(
    cache: EnsembleCache, parsed: Reference, tracking_uri: str, error: RegistryUnavailable
) -> tuple[Path, str]:
    known = cache.load_resolution(parsed.text, tracking_uri)
    path = cache.find(known.manifest_sha256) if known else None
    if known is None or path is None:
        raise error
    _log.warning("%s: using %s from the cache, version %s", error.message, parsed.text, known.version)
    return path, known.version


@contextmanager
def connected(tracking_uri: str) -> Iterator[MlflowClient]:
    """A client whose errors are converted to `ArtifactError`, `SettingsError` or `RegistryUnavailable`."""
    _check_reachable(tracking_uri)
    with _environment(tracking_uri):
        import requests
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            yield MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        except MlflowException as error:
            text, _, body = str(error).partition("Response body:")
            message = scrub(text.strip())
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"):
                raise ArtifactError(f"MLflow at {without_credentials(tracking_uri)}: {message}") from None
            if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
                if "Invalid Host header" in body:
                    raise _host_refused(tracking_uri) from None
                raise _denied(tracking_uri, message) from None
            raise _unavailable(tracking_uri, message) from error
        except requests.exceptions.SSLError as error:
            raise _denied(tracking_uri, _tls_reason(error)) from None
        except requests.RequestException as error:
            raise _unavailable(tracking_uri, scrub(f"{type(error).__name__}: {error}")) from error
        except ImportError as error:
            raise SettingsError(
                f"MLflow at {without_credentials(tracking_uri)} keeps its files in a store that needs {error.name!r}",
                hint=f"Install this package, or {_PROXY}",
            ) from None
        except OSError as error:
            raise ArtifactError(
                f"MLflow at {without_credentials(tracking_uri)}: cannot read or write a file: {scrub(str(error))}",
                hint=f"Check the disk and its permissions, or {_PROXY}",
            ) from None


@contextmanager
def _environment(tracking_uri: str) -> Iterator[None]:
    """Set the timeouts of mlflow and its credentials for `tracking_uri`: mlflow reads them from the environment.

    Of the timeouts, variables of the user have priority; of the credentials, the settings.

    Several threads may load versions at once: the last one to leave removes the variables.
    """
    with _environment_lock:
        if not _environment_users:
            added = {name: value for name, value in _CLIENT_ENVIRONMENT.items() if name not in os.environ}
            added |= _credentials(tracking_uri)
            _environment_before.update({name: os.environ.get(name) for name in added})
            os.environ.update(added)
        _environment_users.append(threading.get_ident())
    try:
        yield
    finally:
        with _environment_lock:
            _environment_users.remove(threading.get_ident())
            if not _environment_users:
                for name, before in _environment_before.items():
                    if before is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = before
                _environment_before.clear()


def _credentials(tracking_uri: str) -> dict[str, str]:
    """The variables from which mlflow reads the credentials that the address carries."""
    if not isinstance(tracking_uri, RegistryAddress):
        return {}
    found = {
        "MLFLOW_TRACKING_USERNAME": tracking_uri.username,
        "MLFLOW_TRACKING_PASSWORD": tracking_uri.password,
        "MLFLOW_TRACKING_SERVER_CERT_PATH": tracking_uri.ca_file,
    }
    return {name: value for name, value in found.items() if value}


def _check_reachable(tracking_uri: str) -> None:
    """Raise unless an HTTP server at `tracking_uri` responds within `HEALTH_TIMEOUT_S`, with any status."""
    if urlsplit(tracking_uri).scheme not in ("http", "https") or not urlsplit(tracking_uri).hostname:
        raise SettingsError(
            # The message does not contain the value, which may include a password.
            "the setting `mlflow.url` is not the address of an MLflow server",
            hint="The address starts with http:// or https://.",
        )
    try:
        context = _tls(tracking_uri)
        url = f"{without_credentials(tracking_uri)}/health"
        with urllib.request.urlopen(url, timeout=HEALTH_TIMEOUT_S, context=context):  # noqa: S310  http
            pass
    except urllib.error.HTTPError:
        # A proxy may hide /health or require a password; the call of mlflow will show.
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            raise _denied(tracking_uri, _tls_reason(reason)) from None
        raise _unavailable(tracking_uri, f"{reason}") from None


def _tls(tracking_uri: str) -> ssl.SSLContext | None:
    """The authorities that sign the certificate of the registry; None for http. Raises `SettingsError`."""
    if urlsplit(tracking_uri).scheme != "https":
        return None
    ca_file = tracking_uri.ca_file if isinstance(tracking_uri, RegistryAddress) else ""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise SettingsError(f"mlflow.ca_file: cannot read {ca_file}: {error.strerror or error}") from None


def _denied(tracking_uri: str, reason: str) -> AccessDenied:
    return AccessDenied(
        f"MLflow at {without_credentials(tracking_uri)} denies access: {reason}",
        hint="Check mlflow.username, mlflow.password and mlflow.ca_file, and the permissions of the user.",
    )


def _host_refused(tracking_uri: str) -> AccessDenied:
    """MLflow 3.5 and later accept only some host names, by default localhost and private addresses."""
    address = without_credentials(tracking_uri)
    host = urlsplit(address).netloc
    return AccessDenied(
        f"MLflow at {address} does not accept requests to the host name {host}",
        hint=f"Start the MLflow server with --allowed-hosts {host}, or set MLFLOW_SERVER_ALLOWED_HOSTS there.",
    )


def _tls_reason(error: Exception) -> str:
    """What is wrong with a certificate, without the address and the place in the C library."""
    found = re.search(r"certificate verify failed: ([^(\]]*)", str(error))
    return f"the TLS connection fails: {found[1].strip() if found else type(error).__name__}"


def _unavailable(tracking_uri: str, reason: str) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"the MLflow registry at {without_credentials(tracking_uri)} does not answer: {reason}",
        hint="Is it running? Check the setting `mlflow.url`, or give a folder (./champion) instead.",
    )


def _find(client: MlflowClient, parsed: Reference) -> ModelVersion:
    """The version that `parsed` refers to. Raises `ArtifactError` with the existing names or aliases."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(parsed.name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ArtifactError(
            f"no ensemble with the name {parsed.name!r} is registered",
            hint="`stream-scorer ensemble list` lists the registered ones; `ensemble register` adds one.",
        ) from None
    version = parsed.version
    if parsed.alias:
        if parsed.alias not in aliases:
            known = ", ".join(f"{parsed.name}@{alias}" for alias in sorted(aliases)) or "none"
            raise ArtifactError(f"{parsed.name!r} has no alias {parsed.alias!r}", hint=f"Its aliases: {known}.")
        version = str(aliases[parsed.alias])
    try:
        return client.get_model_version(parsed.name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ArtifactError(
            f"{parsed.name!r} has no version {version}", hint="`stream-scorer ensemble list` shows its versions."
        ) from None


def _download(client: MlflowClient, tracking_uri: str, found: ModelVersion, file: str) -> bytes:
    from mlflow.artifacts import download_artifacts

    source = client.get_model_version_download_uri(found.name, found.version)
    with tempfile.TemporaryDirectory(prefix="stream-scorer-") as folder:
        path = download_artifacts(artifact_uri=f"{source}/{file}", dst_path=folder, tracking_uri=tracking_uri)
        return read_bounded(Path(path), MAX_MEMBER_BYTES)


def _log_run(client: MlflowClient, directory: Path, name: str, manifest: Manifest, digest: str) -> str:
    """One finished MLflow run with the ensemble's files, parameters and metrics. Returns its id."""
    from mlflow.entities import Metric, Param

    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    training = manifest.training
    run = client.create_run(
        experiment_id, run_name=name, tags={DIGEST_TAG: digest, "stream_scorer.training_run": training.run_id}
    )
    run_id = str(run.info.run_id)
    status = "FAILED"
    try:
        params = {
            "spec": manifest.spec_name,
            "spec_hash": manifest.spec_hash,
            "feature_hash": manifest.feature_hash,
            "combiner": manifest.formula,
            "rows": training.rows,
            "positives": training.positives,
            "data_sha256": training.data_sha256,
            "thresholds": json.dumps(msgspec.to_builtins(manifest.thresholds)),
        }
        params |= {f"weight.{member.name}": member.weight for member in manifest.members}
        metrics = {
            f"{subject}.{metric}": value for subject, of in training.metrics.items() for metric, value in of.items()
        }
        client.log_batch(
            run_id,
            params=[Param(key, str(value)) for key, value in params.items()],
            metrics=[Metric(key, value, manifest.created_at, 0) for key, value in metrics.items()],
        )
        for file in [MANIFEST_FILE, *(member.path for member in manifest.members)]:
            client.log_artifact(run_id, str(directory / file), ARTIFACT_PATH)
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return run_id


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
