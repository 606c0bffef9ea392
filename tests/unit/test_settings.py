"""Where a setting's value comes from, and what happens to a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_scorer.errors import SettingsError
from stream_scorer.settings import CATALOGUE, SETTINGS_FILE, load_settings

NAME = "kafka.bootstrap"
VARIABLE = "STREAM_SCORER_KAFKA_BOOTSTRAP"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("by-file:1\n")
    return path


def test_each_source_beats_those_below_it(tmp_path: Path, secret: Path) -> None:
    flags = {NAME: "by-flag:1"}
    environment = {VARIABLE: "by-variable:1", VARIABLE + "_FILE": str(secret)}
    toml = tmp_path / SETTINGS_FILE
    toml.write_text('[kafka]\nbootstrap = "by-toml:1"\n')
    stack = {"kafka": "by-stack:1"}

    def found() -> tuple[str, str]:
        settings = load_settings(
            flags, environment=environment, directory=tmp_path, stack_addresses=lambda _folder: stack
        )
        return settings[NAME], settings.source(NAME)

    assert found() == ("by-flag:1", "flag")
    flags.clear()
    assert found() == ("by-variable:1", VARIABLE)
    del environment[VARIABLE]
    assert found() == ("by-file:1", VARIABLE + "_FILE")
    environment.clear()
    assert found() == ("by-toml:1", SETTINGS_FILE)
    toml.unlink()
    assert found() == ("by-stack:1", "local stack")
    stack.clear()
    assert found() == ("", "default")


def test_only_addresses_come_from_the_stack(tmp_path: Path) -> None:
    addresses = {"kafka": "k:1", "redis": "redis://r:1/0", "mlflow": "http://m:1", "topics": "no"}
    settings = load_settings({}, environment={}, directory=tmp_path, stack_addresses=lambda _folder: addresses)
    from_stack = {s.name for s in CATALOGUE if settings.source(s.name) == "local stack"}
    assert from_stack == {"kafka.bootstrap", "redis.url", "mlflow.url"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[kafka]\nbootsrap = "k:1"\n', "kafka.bootsrap"),
        ('[broker]\nbootstrap = "k:1"\n', "broker.bootstrap"),
        ('bootstrap = "k:1"\n', "bootstrap"),
    ],
)
def test_an_unknown_name_in_the_file_is_an_error(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / SETTINGS_FILE).write_text(text)
    with pytest.raises(SettingsError, match=named) as caught:
        load_settings({}, environment={}, directory=tmp_path)
    assert caught.value.exit_code == 2
    assert "doctor" in caught.value.hint


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text("[kafka\n")
    with pytest.raises(SettingsError, match=SETTINGS_FILE):
        load_settings({}, environment={}, directory=tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("STREAM_SCORER_SCORER_BATCH", "many", "is not a number"),
        ("STREAM_SCORER_SCORER_START", "middle", "one of earliest, latest"),
    ],
)
def test_a_value_that_does_not_parse_names_its_setting_and_source(
    tmp_path: Path, variable: str, value: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        load_settings({}, environment={variable: value}, directory=tmp_path)
    assert variable in str(caught.value)


def test_a_secret_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    with pytest.raises(SettingsError, match=f"{VARIABLE}_FILE.*nothing"):
        load_settings({}, environment={VARIABLE + "_FILE": missing}, directory=tmp_path)


def test_what_is_required_and_not_set_says_how_to_set_it(tmp_path: Path) -> None:
    settings = load_settings({}, environment={}, directory=tmp_path)
    with pytest.raises(SettingsError) as caught:
        settings.require(NAME)
    assert VARIABLE in caught.value.hint
    assert "stack up" in caught.value.hint


def test_numbers_of_every_source_are_numbers(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text("[scorer]\nbatch = 7\n[metrics]\nport = 0\n")
    settings = load_settings({"metrics.port": 1}, environment={"STREAM_SCORER_SCORER_PACE_MS": "9"}, directory=tmp_path)
    assert (settings["scorer.batch"], settings["scorer.pace_ms"], settings["metrics.port"]) == (7, 9, 1)


def test_no_two_settings_share_a_variable() -> None:
    variables = [setting.variable for setting in CATALOGUE]
    assert len(set(variables)) == len(variables)
