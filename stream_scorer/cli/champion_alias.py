"""The check before a new version gets the alias `champion`, which names the version that serves."""

from __future__ import annotations

import click

from stream_scorer.console import plain
from stream_scorer.errors import StreamScorerError, UsageError
from stream_scorer.settings import Settings


def check_alias(settings: Settings, name: str, alias: str | None, version: str | None = None) -> None:
    """Raise `UsageError` if `alias` is `champion` and another version than `version` has it, or serves.

    `version` is None for one that is not registered yet. If Kafka does not answer, only the registry is asked, with a
    note: who registers a version may have no access to the topics.

    Raises:
        RegistryUnavailable: the registry does not answer.
    """
    from stream_scorer.control.aliases import CHAMPION
    from stream_scorer.ensemble.registry import find_alias

    if alias != CHAMPION:
        return
    serves = _find_serving(settings, name)
    now = serves or find_alias(name, CHAMPION, settings["mlflow.url"])
    if now is not None and now != version:
        raise UsageError(
            f"the alias {CHAMPION} of {name} names the version that serves: {'' if serves else 'it names '}{now}",
            hint=f"Register without --alias. Then `stream-scorer ensemble promote {name}:VERSION --why …` moves it.",
        )


def _find_serving(settings: Settings, name: str) -> str | None:
    """The version of the ensemble `name` that serves; None if none does, or if Kafka does not answer."""
    from stream_scorer.control.commands import catch_up
    from stream_scorer.control.recovery import newest_state
    from stream_scorer.control.state import History
    from stream_scorer.kafka.control_log import ControlLog
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    settings.refuse_mixed("kafka.bootstrap")
    bootstrap, topics = settings["kafka.bootstrap"], Topics.of(settings)
    if not bootstrap:
        return None
    try:
        known = TopicAdmin(bootstrap).partitions()
        for topic in (topics.control, topics.serving_state):
            if topic not in known:
                continue
            log: ControlLog = ControlLog(bootstrap, topic)
            try:
                if topic == topics.control:
                    history = History()
                    catch_up(log, history, log.end())
                    state = history.states.get(name)
                else:
                    state = newest_state(log, name)
            finally:
                log.close()
            if state is not None:
                return state.champion.version
    except StreamScorerError as error:
        click.echo(plain(f"whether a version of {name} serves is not known: {error.message}"), err=True)
    return None
