"""Where commands find published decisions and the versions that made them: on the topics, or in an archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_scorer.errors import ArtifactError, UsageError
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.replay.recorded import TimedRanges

archive_option = click.option(
    "--archive",
    type=click.Path(path_type=Path, file_okay=False),
    help="Read this archive of `audit export` instead of the topics and the registry.",
)
tolerance_option = click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-9,
    show_default=True,
    help="Maximum difference of recomputed numbers; 0 is possible on the machine that scored.",
)


@dataclass(frozen=True, slots=True)
class Decided:
    """Published records, the names of their topics, and the folder of a version by ensemble, version and manifest.

    The digest of the manifest is empty for records that do not state it.
    `until` is the end of the archive's period (epoch ms), None for topics.
    """

    reader: TimedRanges
    topics: Topics
    folder_of: Callable[[str, str, str], Path]
    until: int | None = None


@contextmanager
def open_decided(
    settings: Settings, archive: Path | None, client_id: str, *, require: bool = True
) -> Iterator[Decided]:
    """Open `archive`, or the topics and the registry of the settings.

    `require` the topics of scores and contributions. Raises `UsageError` without them.
    """
    if archive is not None:
        from stream_scorer.audit.archive import Archive

        found = Archive(archive)
        yield Decided(found, found.topics, _archived(found), found.seal.until)
        return
    from stream_scorer.ensemble.registry import parse_reference, recorded
    from stream_scorer.kafka.range_reader import RangeReader
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    topics, bootstrap = Topics.of(settings), settings.require("kafka.bootstrap")
    if require:
        TopicAdmin(bootstrap).require([topics.scores, topics.contributions])

    def folder_of(name: str, version: str, manifest_sha256: str) -> Path:
        cache, given = Path(settings["cache.dir"]).expanduser(), parse_reference(settings["scorer.ensemble"]).folder
        return recorded(name, version, manifest_sha256, settings["mlflow.url"], cache, given)

    with RangeReader(bootstrap, client_id=client_id) as reader:
        yield Decided(reader, topics, folder_of)


def _archived(archive: Any) -> Callable[[str, str, str], Path]:
    def folder_of(name: str, version: str, manifest_sha256: str) -> Path:
        found = archive.versions(name, version)
        if manifest_sha256:
            found = [each for each in found if each.manifest_sha256 == manifest_sha256]
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} versions with different manifests decided as {name} {version} in the archive "
                f"{archive.folder}",
                hint="`audit verify` recomputes the scores of each with its own models.",
            )
        folder: Path | None = archive.model_folder(found[0]) if found else None
        if folder is None:
            raise ArtifactError(
                f"the archive {archive.folder} has no models of {name} {version}",
                code="artifact_missing",
                hint="It was exported with --without-models.",
            )
        return folder

    return folder_of
