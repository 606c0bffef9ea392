"""Where a setting's value comes from, and what happens to a wrong one."""

from __future__ import annotations

import logging
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stream_scorer.cli import checks as checks_module
from stream_scorer.cli.checks import run_checks
from stream_scorer.cli.main import cli
from stream_scorer.cli.options import with_settings
from stream_scorer.ensemble.registry import resolve
from stream_scorer.errors import SettingsError
from stream_scorer.settings import ADDRESSES, CATALOGUE, SETTINGS_FILE, Setting, Settings, load_settings

NAME = "kafka.bootstrap"
VARIABLE = "STREAM_SCORER_KAFKA_BOOTSTRAP"
CARDS = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("by-file:1\n")
    return path


def test_each_source_beats_those_below_it(tmp_path: Path, secret: Path) -> None:
    flags = {NAME: "by-flag:1"}
    # The value of a Secret that was made from a text file ends in a newline.
    environment = {VARIABLE: "by-variable:1\r\n", VARIABLE + "_FILE": str(secret)}
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


LOCAL = {"kafka": "k:1", "redis": "redis://r:1/0", "mlflow": "http://m:1"}


def mixed(folder: Path, **environment: str) -> Settings:
    return load_settings({}, environment=environment, directory=folder, stack_addresses=lambda _folder: LOCAL)


def test_addresses_of_the_stack_are_not_mixed_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = mixed(tmp_path, STREAM_SCORER_KAFKA_BOOTSTRAP="production:9092")
    assert (settings["redis.url"], settings["mlflow.url"], settings.source("redis.url")) == ("", "", "default")
    for name in ("redis.url", "mlflow.url"):
        with pytest.raises(SettingsError) as caught:
            settings.require(name)
        assert caught.value.message == (
            f"{name} would be that of the local stack in this directory, but kafka.bootstrap is set (from {VARIABLE})"
        )
        for named in ("redis.url (STREAM_SCORER_REDIS_URL or --redis)", "mlflow.url (STREAM_SCORER_MLFLOW_URL or "):
            assert named in caught.value.hint
    with pytest.raises(SettingsError, match="mlflow.url would be"):
        resolve("cards@champion", settings["mlflow.url"], tmp_path)
    asked = [(name, check) for name, check in checks_module._checks("scorer") if name in ("redis", "mlflow")]
    monkeypatch.setattr(checks_module, "_checks", lambda role: asked)
    checks = {check.name: check for check in run_checks(settings)}
    assert (checks["redis"].state, checks["mlflow"].state) == ("failed", "failed")
    assert "redis.url would be that of the local stack" in checks["redis"].message
    (tmp_path / SETTINGS_FILE).write_text('[redis]\nurl = "redis://other:1/0"\n')
    with pytest.raises(SettingsError, match=f"but redis.url is set .from {SETTINGS_FILE}"):
        mixed(tmp_path).refuse_mixed(*ADDRESSES)


def test_an_address_of_the_stack_itself_and_an_empty_one_are_no_mixture(tmp_path: Path) -> None:
    settings = mixed(tmp_path, STREAM_SCORER_KAFKA_BOOTSTRAP="k:1", STREAM_SCORER_MLFLOW_URL="")
    settings.refuse_mixed(*ADDRESSES)
    assert (settings.require("redis.url"), settings["mlflow.url"]) == (LOCAL["redis"], "")
    every = {"KAFKA_BOOTSTRAP": "p:1", "REDIS_URL": "redis://p:1/0", "MLFLOW_URL": "http://p:1"}
    mixed(tmp_path, **{f"STREAM_SCORER_{name}": value for name, value in every.items()}).refuse_mixed(*ADDRESSES)


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["monitor"],
        ["ensemble", "list"],
        ["ensemble", "show", "cards@champion"],
    ],
)
def test_each_command_that_needs_an_address_of_the_stack_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stream_scorer.cli.options._stack_addresses", lambda _folder: LOCAL)
    monkeypatch.setenv(VARIABLE, "127.0.0.1:1")
    monkeypatch.setenv("STREAM_SCORER_SCORER_SPEC", str(CARDS))
    monkeypatch.setenv("STREAM_SCORER_SCORER_ID_KEY", "k" * 40)
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, SettingsError), done.output
    assert "would be that of the local stack in this directory" in done.exception.message


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
    assert "docs/settings.md" in caught.value.hint


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text("[kafka\n")
    with pytest.raises(SettingsError, match=SETTINGS_FILE):
        load_settings({}, environment={}, directory=tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("STREAM_SCORER_SCORER_BATCH", "many", "must be an integer"),
        ("STREAM_SCORER_SCORER_BATCH", "7.5", "must be an integer"),
        ("STREAM_SCORER_MONITOR_IDLE_AFTER_S", "soon", "must be a number"),
        ("STREAM_SCORER_MONITOR_IDLE_AFTER_S", "nan", "must be 0.1 to 86400 s"),
        ("STREAM_SCORER_MONITOR_WINDOWS", "1,,24", "must be an integer"),
        ("STREAM_SCORER_MONITOR_WINDOWS", "1,2000", "must be 1 to 1024 panes each"),
        ("STREAM_SCORER_REDIS_CLUSTER", "perhaps", "must be yes or no"),
        ("STREAM_SCORER_SCORER_START", "middle", "must be one of earliest, latest"),
    ],
)
def test_a_value_that_does_not_parse_names_its_setting_value_and_source(
    tmp_path: Path, variable: str, value: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings({}, environment={variable: value}, directory=tmp_path)
    setting = next(s for s in CATALOGUE if s.variable == variable)
    assert str(caught.value).startswith(f"{setting.name} = {value!r} (from {variable}) must be ")


NUMBERS = [s for s in CATALOGUE if s.kind in ("integer", "number", "integers")]


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda s: s.name)
def test_every_number_has_bounds_that_it_enforces(tmp_path: Path, setting: Setting) -> None:
    assert setting.minimum is not None
    assert setting.maximum is not None
    step = 1 if setting.kind != "number" else 0.01
    # A pair of bounds may contradict the default of another setting: rules are tested on their own.
    for inside in (setting.minimum, setting.maximum):
        assert setting.parse(f"{inside:.10g}") is not None
    for outside in (setting.minimum - step, setting.maximum + step):
        with pytest.raises(SettingsError) as caught:
            load_settings({setting.name: f"{outside:.10g}"}, environment={}, directory=tmp_path)
        assert str(caught.value) == f"{setting.name} = '{outside:.10g}' (from flag) must be {setting.allowed}"


def test_every_setting_is_documented_typed_and_has_a_valid_default() -> None:
    for setting in CATALOGUE:
        assert setting.help.endswith("."), setting.name
        default = setting.default() if callable(setting.default) else setting.default
        assert setting.parse(default) == setting.parse(setting.text(default)) == default, setting.name


def test_the_watchdog_waits_longer_than_a_member_may_take(tmp_path: Path) -> None:
    flags = {"scorer.watchdog_timeout_s": 2}
    environment = {"STREAM_SCORER_SCORER_MEMBER_TIMEOUT_MS": "2000"}
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, environment=environment, directory=tmp_path)
    assert "scorer.watchdog_timeout_s = 2 (from flag)" in str(caught.value)
    assert "scorer.member_timeout_ms = 2000 (from STREAM_SCORER_SCORER_MEMBER_TIMEOUT_MS)" in str(caught.value)
    for watchdog_s in (0, 3):
        load_settings({"scorer.watchdog_timeout_s": watchdog_s}, environment=environment, directory=tmp_path)


@pytest.mark.parametrize(
    ("name", "today"), [("scorer.group", "stream-scorer"), ("monitor.group", "stream-scorer-monitor")]
)
def test_a_prefix_of_topics_needs_a_group_of_its_own(tmp_path: Path, name: str, today: str) -> None:
    """Two installations on the same brokers would share the partitions, and fence each other's producers."""

    def group(**more: str) -> str:
        flags = {key.replace("__", "."): value for key, value in more.items()}
        return load_settings(flags, environment={}, directory=tmp_path).group(name)

    assert group() == today
    # Topics that have other names say nothing about another installation.
    assert group(topics__transactions="payments.card.auth", topics__scores="fraud.scores") == today
    with pytest.raises(SettingsError) as caught:
        group(topics__prefix="staging.")
    assert "topics.prefix = staging. (from flag)" in caught.value.message
    assert f"{name} is not set" in caught.value.message
    variable = next(setting.variable for setting in CATALOGUE if setting.name == name)
    assert variable in caught.value.hint and f"staging.{today}" in caught.value.hint
    assert f"to {today} if this installation" in caught.value.hint
    key = name.replace(".", "__")
    assert group(topics__prefix="staging.", **{key: "staging.scorers"}) == "staging.scorers"
    assert group(topics__prefix="staging.", **{key: today}) == today


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"], ["run", "--passthrough"], ["monitor"], ["features", "check"], ["features", "expire"],
        ["features", "rebuild"], ["features", "show", "customer", "c1"],
        ["topics", "acls", "--role", "scorer"], ["topics", "acls", "--role", "monitor"],
    ],
)  # fmt: skip
def test_each_command_that_uses_a_group_refuses_the_default_one_with_a_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAM_SCORER_TOPICS_PREFIX", "staging.")
    monkeypatch.setenv(VARIABLE, "127.0.0.1:9")
    done = CliRunner().invoke(cli, [*arguments, *([] if arguments[0] == "topics" else ["--spec", str(CARDS)])])
    assert isinstance(done.exception, SettingsError), done.output
    assert ("monitor" if "monitor" in arguments else "scorer") + ".group is not set" in done.exception.message


@pytest.mark.parametrize("role", ["operator", "subscriber", "trainer", "producer"])
def test_roles_without_a_group_of_the_installation_need_none(monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    monkeypatch.setenv("STREAM_SCORER_TOPICS_PREFIX", "staging.")
    done = CliRunner().invoke(cli, ["topics", "acls", "--role", role])
    assert done.exit_code == 0 and "staging." in done.output


def test_a_misspelled_name_gets_a_suggestion(tmp_path: Path) -> None:
    names = ("KAFKA_BOOTSTRP", "REDIS_PASWORD_FILE", "KAFKA_CLIENT_CLIENT_RACK", "SERVICE_HOST", "PORT")
    variables = {f"STREAM_SCORER_{name}": "x" for name in names}
    settings = load_settings({}, environment=variables, directory=tmp_path)
    bootstrap, password = settings.warnings
    assert "STREAM_SCORER_KAFKA_BOOTSTRP" in bootstrap and "did you mean STREAM_SCORER_KAFKA_BOOTSTRAP?" in bootstrap
    assert "did you mean STREAM_SCORER_REDIS_PASSWORD_FILE?" in password
    (tmp_path / SETTINGS_FILE).write_text("[scorer]\nbacth = 1\n")
    with pytest.raises(SettingsError, match=r"no setting 'scorer.bacth'\n  Did you mean 'scorer.batch'\?"):
        load_settings({}, environment={}, directory=tmp_path)


def test_the_flags_of_a_command_reach_the_catalogue() -> None:
    found = {}

    @click.command()
    @with_settings("scorer.explain_alerts", "monitor.windows", "monitor.joiner", "scorer.start")
    def command(settings: Settings) -> None:
        found.update({name: settings[name] for name in ("scorer.explain_alerts", "monitor.windows", "monitor.joiner")})

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        done = CliRunner().invoke(command, ["--explain-alerts", "2", "--window", "3", "--window", "4,5", "--no-joiner"])
        assert done.exit_code == 0, done.output
        assert found == {"scorer.explain_alerts": 2, "monitor.windows": (3, 4, 5), "monitor.joiner": False}
        refused = CliRunner().invoke(command, ["--window", "0"])
        assert isinstance(refused.exception, SettingsError)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_the_document_lists_the_catalogue() -> None:
    document = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    for setting in CATALOGUE:
        row = next(line for line in document.splitlines() if line.startswith(f"| `{setting.name}` |"))
        for part in (setting.variable, setting.flag, setting.kind, setting.allowed, setting.help):
            assert part in row, setting.name


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


def test_secrets_are_those_of_settings_and_addresses(tmp_path: Path) -> None:
    flags = {
        "redis.url": "redis://me:p%40ssword@cache:6379/0",
        "mlflow.url": "https://registry/?token=abcdef",
        "scorer.id_key": "k" * 40 + "\n",
    }
    settings = load_settings(flags, environment={}, directory=tmp_path)
    assert set(settings.secrets) == {"p%40ssword", "p@ssword", "token=abcdef", "k" * 40}
    assert load_settings({}, environment={}, directory=tmp_path).secrets == ()
