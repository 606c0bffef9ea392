"""The MLflow registry: where ensembles get a name, a version and aliases. The only module that imports mlflow.

MLflow is used as a registry and a byte store, never as a loader: nothing of what it returns is executed, and every
byte is checked against the manifest's digests. mlflow is imported inside functions, so that a scorer that starts from
a folder or from the cache never pays for it.

A reference is a folder (``champion``, ``./champion``, ``/srv/champion``), ``name@alias`` or ``name:version``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import msgspec

from stream_scorer.ensemble.cache import EnsembleCache, Resolution
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import (
    MANIFEST_FILE,
    MAX_MEMBER_BYTES,
    Manifest,
    manifest_digest,
    read_bounded,
    read_manifest,
)
from stream_scorer.errors import ArtifactError, RegistryUnavailable, SettingsError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = "stream-scorer"
# Where in the run the ensemble's files are.
ARTIFACT_PATH = "ensemble"
DIGEST_TAG = "stream_scorer.manifest_sha256"
# A registry that answers at all answers this in milliseconds; a scorer that has a cache should not wait longer.
HEALTH_TIMEOUT_S = 3.0
# mlflow's own are 7 retries and 120 s: a dead registry would hold a scorer's start for minutes. Telemetry is off: a
# scorer speaks to nobody it was not told of.
_CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output is for results that programs read.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# What versions of ensembles begin with that were never registered.
LOCAL = "local-"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a person wrote to name an ensemble: a folder, or a name with either an alias or a version."""

    text: str
    folder: Path | None = None
    name: str = ""
    alias: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of a registered ensemble. `created_at` is UTC epoch milliseconds."""

    name: str
    version: str
    aliases: list[str]
    created_at: int
    manifest_sha256: str


def parse_reference(text: str) -> Reference:
    """What `text` refers to: a folder, ``name@alias`` or ``name:version``.

    A path (with a ``/``, or a leading ``.`` or ``~``) is always a folder. Any other text is a folder if the current
    directory contains it; a folder that looks like a registered reference must contain a manifest, and wins.

    Raises:
        ArtifactError: it is none of them.
    """
    folder = Path(text).expanduser()
    if text.startswith((".", "~")) or "/" in text:
        return Reference(text, folder=folder)
    registered = _parse_registered(text)
    if registered is None and text and folder.is_dir():
        return Reference(text, folder=folder)
    if registered is not None and (folder / MANIFEST_FILE).is_file():
        _log.warning("%s is a folder here: it is used, and not the registered ensemble of that name", text)
        return Reference(text, folder=folder)
    if registered is None:
        known = text if _NAME.match(text) else "cards"
        raise ArtifactError(
            f"{text!r} names no ensemble: the current directory has no folder {text!r}, and a registered ensemble is "
            "named with an alias or a version",
            hint=f"Write the path of a folder, or name@alias ({known}@champion), or name:version ({known}:7).",
        )
    return registered


def _parse_registered(text: str) -> Reference | None:
    """The reference if `text` is ``name@alias`` or ``name:version``."""
    name, at, alias = text.partition("@")
    if at and _NAME.match(name) and _NAME.match(alias):
        return Reference(text, name=name, alias=alias)
    name, colon, version = text.partition(":")
    if colon and _NAME.match(name) and version.isascii() and version.isdigit():
        return Reference(text, name=name, version=version)
    return None


def register(
    directory: Path, name: str, tracking_uri: str, alias: str | None = None, tags: Mapping[str, str] | None = None
) -> str:
    """Register the ensemble in `directory` as a new version of `name` and return the version.

    It is loaded and self-tested first. Its training's parameters and metrics and its files are logged as one MLflow
    run; `alias`, if given, is moved to the new version last.

    Raises:
        ArtifactError: the ensemble does not load, or the registry refuses the name or alias.
        RegistryUnavailable: the registry does not answer.
    """
    if not _NAME.match(name) or (alias is not None and not _NAME.match(alias)):
        raise ArtifactError(f"{name!r} with alias {alias!r} cannot be registered: use letters, digits, '.', '_', '-'")
    ensemble = Ensemble.load(directory, version="")
    manifest, digest = ensemble.manifest, ensemble.digest
    with _registry(tracking_uri) as client:
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


def resolve(reference: str, tracking_uri: str | None, cache_dir: Path) -> tuple[Path, str]:
    """The folder that holds `reference`, its digests verified, and its version (``local-<digest>`` for a folder).

    Where the registry does not answer, what the reference meant last time is taken from the cache, with a warning.

    Raises:
        ArtifactError: no such name, alias or version, or the files are not what their digests say.
        RegistryUnavailable: the registry does not answer and the cache does not hold the reference.
        SettingsError: the registry's address is missing or not http.
    """
    parsed = parse_reference(reference)
    if parsed.folder is not None:
        return parsed.folder, local_version(manifest_digest(read_manifest(parsed.folder)))
    if not tracking_uri:
        raise SettingsError(
            f"{reference} is in the registry, and no registry is set", hint="Give --mlflow, or name a folder."
        )
    cache = EnsembleCache(cache_dir)
    try:
        with _registry(tracking_uri) as client:
            found = _find(client, parsed)
            path, digest = cache.store(
                lambda file: _download(client, tracking_uri, found, file), found.tags.get(DIGEST_TAG)
            )
    except RegistryUnavailable as error:
        return _from_cache(cache, parsed, tracking_uri, error)
    cache.save_resolution(Resolution(reference, tracking_uri, str(found.version), digest))
    return path, str(found.version)


def fetch(name: str, version: str, manifest_sha256: str, tracking_uri: str | None, cache_dir: Path) -> Path:
    """The folder of exactly that manifest, its digests verified: from the cache, else from the registry.

    Raises:
        ArtifactError: neither has it, or the registry has another manifest under this version.
        RegistryUnavailable: the registry does not answer.
    """
    cached = EnsembleCache(cache_dir).find(manifest_sha256)
    if cached is not None:
        return cached
    if not version.isdigit():
        raise ArtifactError(
            f"{name} {version} was served from a folder and is not in the cache {cache_dir}",
            hint="Register it: other machines can have it from the registry only.",
        )
    path, _ = resolve(f"{name}:{version}", tracking_uri, cache_dir)
    digest = manifest_digest(read_manifest(path))
    if digest != manifest_sha256:
        raise ArtifactError(f"{name} {version} has manifest {digest[:12]}…, {manifest_sha256[:12]}… is asked for")
    return path


def recorded(name: str, version: str, tracking_uri: str | None, cache_dir: Path, folder: Path | None) -> Path:
    """The folder of the version that a record names: from the registry, or of one served from a folder, from the cache.

    `folder` is looked at too. A version served from a folder bears the head of its manifest's digest.

    Raises:
        ArtifactError: it is nowhere, or is not what its digests say. RegistryUnavailable: the registry does not answer.
    """
    if not version.startswith(LOCAL):
        return resolve(f"{name}:{version}", tracking_uri, cache_dir)[0]
    if folder is not None and local_version(manifest_digest(read_manifest(folder))) == version:
        return folder
    cached = EnsembleCache(cache_dir).find_head(version.removeprefix(LOCAL))
    if cached is None:
        raise ArtifactError(
            f"{name} {version} was served from a folder and is not in the cache {cache_dir}",
            hint="Give --ensemble with the folder that served, or --cache of a scorer.",
        )
    return cached


def local_version(manifest_sha256: str) -> str:
    """What an ensemble is called that was never registered."""
    return f"{LOCAL}{manifest_sha256[:12]}"


def keep(folder: Path, cache_dir: Path) -> tuple[str, str]:
    """Put the ensemble in `folder` into the cache; answers its version (``local-<digest>``) and its manifest's digest.

    Raises:
        ArtifactError: it is not what its manifest says.
    """
    digest = manifest_digest(read_manifest(folder))
    EnsembleCache(cache_dir).store(lambda file: read_bounded(folder / file, MAX_MEMBER_BYTES), digest)
    return local_version(digest), digest


def set_alias(name: str, alias: str, version: str, tracking_uri: str) -> None:
    """Move `alias` to a version. Raises `ArtifactError` and `RegistryUnavailable`."""
    with _registry(tracking_uri) as client:
        client.set_registered_model_alias(name, alias, version)


def list_versions(tracking_uri: str) -> list[RegisteredVersion]:
    """Every registered version that carries an ensemble's digest, newest first within a name.

    Raises:
        RegistryUnavailable: the registry does not answer.
    """
    out = []
    with _registry(tracking_uri) as client:
        token = None
        while True:
            page = client.search_registered_models(max_results=100, page_token=token)
            for model in page:
                aliases = client.get_registered_model(model.name).aliases
                for found in client.search_model_versions(f"name = '{model.name}'"):
                    if DIGEST_TAG not in found.tags:
                        continue
                    names = sorted(alias for alias, version in aliases.items() if version == found.version)
                    out.append(
                        RegisteredVersion(
                            model.name,
                            str(found.version),
                            names,
                            int(found.creation_timestamp),
                            found.tags[DIGEST_TAG],
                        )
                    )
            token = page.token
            if not token:
                return sorted(out, key=lambda entry: (entry.name, -int(entry.version)))


def _from_cache(
    cache: EnsembleCache, parsed: Reference, tracking_uri: str, error: RegistryUnavailable
) -> tuple[Path, str]:
    known = cache.load_resolution(parsed.text, tracking_uri)
    path = cache.find(known.manifest_sha256) if known else None
    if known is None or path is None:
        raise error
    _log.warning("%s: %s taken from the cache, as version %s", error.message, parsed.text, known.version)
    return path, known.version


@contextmanager
def _registry(tracking_uri: str) -> Iterator[MlflowClient]:
    """A client, with everything MLflow raises turned into our errors."""
    _check_answers(tracking_uri)
    with _environment():
        import requests
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            yield MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        except MlflowException as error:
            message = str(error).partition("Response body:")[0].strip()
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"):
                raise ArtifactError(f"MLflow at {_shown(tracking_uri)}: {message}") from None
            if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
                raise SettingsError(
                    f"MLflow at {_shown(tracking_uri)} refuses: {message}", hint="Check its user and password."
                ) from None
            raise _unavailable(tracking_uri, message) from error
        except requests.RequestException as error:
            raise _unavailable(tracking_uri, f"{type(error).__name__}: {error}") from error


@contextmanager
def _environment() -> Iterator[None]:
    """mlflow is bounded by environment variables only; what the user has set stands, the rest is put back after."""
    added = [name for name in _CLIENT_ENVIRONMENT if name not in os.environ]
    for name in added:
        os.environ[name] = _CLIENT_ENVIRONMENT[name]
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _check_answers(tracking_uri: str) -> None:
    """Raise unless something speaks HTTP at `tracking_uri` within `HEALTH_TIMEOUT_S`; any answer will do."""
    if urlsplit(tracking_uri).scheme not in ("http", "https") or not urlsplit(tracking_uri).hostname:
        raise SettingsError(
            # Not repeated: whatever it is, it may hold a password.
            "the setting `mlflow.url` is not the address of an MLflow server",
            hint="It starts with http:// or https://.",
        )
    try:
        with urllib.request.urlopen(f"{_shown(tracking_uri)}/health", timeout=HEALTH_TIMEOUT_S):  # noqa: S310  http
            pass
    except urllib.error.HTTPError:
        # A proxy in front that hides /health, or wants a password: mlflow itself will tell.
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _unavailable(tracking_uri, f"{reason}") from None


def _unavailable(tracking_uri: str, reason: str) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"the MLflow registry at {_shown(tracking_uri)} does not answer: {reason}",
        hint="Is it running? `stream-scorer stack status`, or name a folder (./champion) instead.",
    )


def _shown(tracking_uri: str) -> str:
    """`tracking_uri` without user, password and trailing slash, fit for a message."""
    parts = urlsplit(tracking_uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _find(client: MlflowClient, parsed: Reference) -> ModelVersion:
    """The version `parsed` means. Raises `ArtifactError` saying what there is instead."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(parsed.name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ArtifactError(
            f"no ensemble named {parsed.name!r} is registered",
            hint="`stream-scorer ensemble list` shows what is; `ensemble register` adds one.",
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
