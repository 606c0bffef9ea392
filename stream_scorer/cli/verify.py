"""`stream-scorer verify`: recompute published scores and report differences."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stream_scorer.cli.decided import archive_option, open_decided, tolerance_option
from stream_scorer.cli.options import with_settings
from stream_scorer.console import plain
from stream_scorer.errors import ArtifactError, CheckFailed
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.replay.verify import VerifyReport

# Codes of models that are there, but differ from what their manifest describes.
_ALTERED = ("artifact_digest", "artifact_self_test")


@click.command()
@tolerance_option
@archive_option
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings(
    "kafka.bootstrap", "mlflow.url", "topics.prefix", "scorer.ensemble", "cache.dir", "scorer.spec", "scorer.id_key"
)
def verify(settings: Settings, tolerance: float, archive: Path | None, as_json: bool) -> None:
    """Recompute every score on the topics from its recorded features. Exit code 3 if one differs.

    Scores whose contribution or lineage retention has removed are skipped and counted. Exit code 3 if this holds for
    all scores of a partition, or if a version that scored is not found: its scores are counted, the others verified.

    Loads the version with the recorded manifest: from the folder that --ensemble names, from the cache, or from the
    registry. A member with an altered file is a difference too. With --spec and
    the secret of the scorer, the random review sample is drawn again, for the scores that this spec decided, and their
    decisions by a list, by the fallback and by thresholds of a segment are compared with its policy.
    """
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.replay.verify import Verifier, verify_topics
    from stream_scorer.spec import load_spec

    checked = load_spec(settings["scorer.spec"], settings["scorer.id_key"]) if settings["scorer.spec"] else None
    with open_decided(settings, archive, "stream-scorer-verify") as decided:
        reasons: dict[str, ArtifactError] = {}

        @lru_cache(maxsize=8)
        def ensemble_of(name: str, version: str, manifest_sha256: str) -> Ensemble | None:
            try:
                return Ensemble.load(decided.folder_of(name, version, manifest_sha256), version=version)
            except ArtifactError as error:
                if error.code not in _ALTERED:
                    reasons[f"{name} {version}"] = error
                    return None
                message = f"{name} {version} is not the version that scored: {error.message}"
                raise CheckFailed(message, hint=error.hint) from error

        total = sum(high - low for low, high in decided.reader.bounds(decided.topics.contributions).values())
        with Progress("verifying scores", total, SystemClock()) as progress:
            report = verify_topics(decided.reader, decided.topics, Verifier(ensemble_of, tolerance, checked), progress)
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        for text in _lines(report):
            click.echo(plain(text))
    if report.different:
        raise CheckFailed(f"{report.different:,} of {report.scores:,} scores differ from their records")
    if report.unverified:
        raise CheckFailed(
            f"no score could be recomputed in the partitions {', '.join(map(str, report.unverified))}: "
            f"{_missing(report)}",
            hint="Retention removed these records: keep `contributions` and `lineage` as long as `scores`.",
        )
    if report.unavailable:
        name, count = next(iter(report.unavailable.items()))
        raise CheckFailed(
            f"{sum(report.unavailable.values()):,} scores are not recomputed: {name} ({count:,} scores) is not found: "
            f"{reasons[name].message}",
            hint=reasons[name].hint,
        )
    if not report.scores:
        raise CheckFailed("nothing to compare: the topics contain no scores")


def _lines(report: VerifyReport) -> Iterator[str]:
    from stream_scorer.replay.decisions import describe

    versions = ", ".join(f"{count:,} by {version}" for version, count in report.by_version.items())
    yield f"{report.scores:,} scores recomputed ({versions or 'none'}): {report.different:,} differ"
    for version, count in report.unavailable.items():
        yield f"{count:,} scores not recomputed: {version} is not found"
    if report.skipped:
        yield f"{report.skipped:,} scores skipped: {_missing(report)}"
    for what, count in report.by_what.items():
        yield f"  {what}: {count:,}"
    if report.not_recomputed:
        yield f"not recomputed: {describe(report.not_recomputed)}"
    for example in report.examples:
        yield f"  {example}"


def _missing(report: VerifyReport) -> str:
    return ", ".join(f"{count:,} have no {what}" for what, count in report.by_missing.items())
