"""The inputs and outputs of commands as datasets of OpenLineage events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stream_scorer.connections import without_credentials
from stream_scorer.observability.openlineage import Dataset, file_dataset
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.ensemble.manifest import Manifest


def topic_dataset(settings: Settings, topic: str, version: str | None = None) -> Dataset:
    """A topic, on the first broker of `kafka.bootstrap`."""
    broker = str(settings["kafka.bootstrap"]).split(",")[0].strip()
    return Dataset(f"kafka://{broker}", topic, version)


def history_datasets(settings: Settings, transactions: Path | None, labels: Path | None) -> list[Dataset]:
    """Files of transactions and labels with their digests; without a file of transactions, the input topics."""
    if transactions is not None:
        return [file_dataset(path) for path in (transactions, labels) if path is not None]
    from stream_scorer.kafka.topics import Topics

    return [topic_dataset(settings, topic) for topic in Topics.of(settings).inputs()]


def ensemble_dataset(folder: Path, manifest: Manifest) -> Dataset:
    """The ensemble in a folder, with the digest of its manifest."""
    from stream_scorer.ensemble.manifest import manifest_digest

    return Dataset("file", str(folder.resolve()), manifest_digest(manifest))


def registered_dataset(settings: Settings, name: str, manifest_sha256: str) -> Dataset:
    """A registered ensemble, or one that serves from a folder if no registry is set."""
    return Dataset(without_credentials(settings["mlflow.url"] or "") or "stream-scorer", name, manifest_sha256)
