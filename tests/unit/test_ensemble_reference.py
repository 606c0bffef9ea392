"""What a person may write to name an ensemble."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_scorer.ensemble.manifest import manifest_digest, read_manifest
from stream_scorer.ensemble.registry import keep, parse_reference, recorded, resolve
from stream_scorer.errors import ArtifactError, RegistryUnavailable
from tests.support.ensembles import compose


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["ens", "./ens", "ens/", "nested/../ens"])
def test_a_folder_of_the_current_directory_is_found_by_name_and_by_path(here: Path, text: str) -> None:
    (here / "nested").mkdir()
    compose(here / "ens")
    folder, version = resolve(text, None, here / "cache")
    assert folder.resolve() == here / "ens"
    assert version.startswith("local-")


def test_an_absolute_path_is_a_folder(here: Path) -> None:
    assert parse_reference(str(here / "ens")).folder == here / "ens"
    assert parse_reference("~/ens").folder == Path.home() / "ens"


@pytest.mark.parametrize(
    ("text", "name", "alias", "version"),
    [
        ("cards@champion", "cards", "champion", ""),
        ("cards:7", "cards", "", "7"),
        ("cards:local-0123456789ab", "cards", "", "local-0123456789ab"),
    ],
)
def test_a_registered_reference_has_an_alias_or_a_version(text: str, name: str, alias: str, version: str) -> None:
    parsed = parse_reference(text)
    assert (parsed.folder, parsed.name, parsed.alias, parsed.version) == (None, name, alias, version)


def test_a_folder_with_a_manifest_wins_over_a_registered_name_and_is_logged(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "cards@champion").mkdir()
    assert parse_reference("cards@champion").name == "cards"  # an unrelated folder is no ensemble
    assert caplog.messages == []
    (here / "cards@champion" / "manifest.json").write_text("{}")
    assert parse_reference("cards@champion").folder == Path("cards@champion")
    assert "using the folder" in caplog.text
    # A path is unambiguous.
    caplog.clear()
    assert parse_reference("./cards@champion").folder == Path("cards@champion")
    assert caplog.messages == []


@pytest.mark.parametrize("text", ["ens", "cards@", "@champion", "cards:", "cards:seven", "cards:local-7", "c@a@b", ""])
def test_any_other_text_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ArtifactError, match="is not an ensemble") as caught:
        parse_reference(text)
    assert "champion" in caught.value.hint


@pytest.mark.parametrize("version", ["8", "local-0123456789ab"])
def test_a_version_in_a_record_is_found_by_its_manifest(here: Path, version: str) -> None:
    digest = manifest_digest(compose(here / "ens"))
    keep(here / "ens", here / "cache")
    gone = "http://127.0.0.1:1"  # the cache has it, so no request goes to the registry
    found = recorded("cards", version, digest, gone, here / "cache", None)
    assert manifest_digest(read_manifest(found)) == digest
    assert recorded("cards", version, digest, gone, here / "none", here / "ens") == here / "ens"
    with pytest.raises((ArtifactError, RegistryUnavailable)):
        recorded("cards", version, "../ens\0", gone, here / "cache", None)
