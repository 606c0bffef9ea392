"""Checks of the settings that topics have on the broker, where a wrong one loses records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from stream_scorer.kafka.config import DEFAULT_MESSAGE_BYTES
from stream_scorer.kafka.topics import SAFE_REPLICAS, Topics

DAY_MS = 86_400_000
# A restarted monitor learns the pauses of label sources from `outcomes` of this many label horizons.
OUTCOMES_HORIZONS = 4
# Settings of one topic by name, as the broker returns them.
Config = Mapping[str, str]


class Need(NamedTuple):
    """How long a topic must keep records (ms), the reason with a place for the days, and what happens otherwise."""

    ms: int
    reason: str
    otherwise: str


def needed_retention(topics: Topics, reach_ms: int = 0, horizon_ms: int = 0, labels_ms: int = 0) -> dict[str, Need]:
    """What the topics must be kept for, by name.

    Args:
        reach_ms: how far back features look; 0 if unknown.
        horizon_ms: the label horizon; 0 if unknown.
        labels_ms: how long after a transaction labels count, in the store of the label joiner; 0 if unknown.
    """
    features = Need(reach_ms, "features look back {}", "features that are rebuilt would be partial")
    joiner = Need(labels_ms, "labels count for {}", "a monitor that loses its state folder would miss labels")
    return {
        topics.transactions: features,
        topics.labels: max(features, joiner),
        topics.scores: joiner,
        topics.outcomes: Need(
            OUTCOMES_HORIZONS * horizon_ms,
            f"{OUTCOMES_HORIZONS} times the label horizon is {{}}",
            "a restarted monitor would miss labels",
        ),
    }


def find_problems(
    topics: Topics,
    configs: Mapping[str, Config],
    replicas: Mapping[str, int],
    reach_ms: int = 0,
    horizon_ms: int = 0,
    labels_ms: int = 0,
    *,
    brokers: int = 1,
) -> dict[str, list[str]]:
    """What is wrong with the settings of each topic; topics without a problem are left out.

    Args:
        configs: the settings of the topics that are to be checked. replicas: number of replicas of each.
        reach_ms, horizon_ms, labels_ms: see `needed_retention`. brokers: number of brokers of the cluster.
    """
    most = max((replicas.get(name, 1) for name in configs), default=1)
    found = {name: _problems(topics, name, config, replicas.get(name, 1)) for name, config in configs.items()}
    for name, problems in found.items():
        if replicas.get(name, 1) == 1 < max(most, brokers):
            others = f"other topics have up to {most}" if most > 1 else f"the cluster has {brokers} brokers"
            problems.append(f"has one replica, {others}: it is lost with its broker")
    for name, need in needed_retention(topics, reach_ms, horizon_ms, labels_ms).items():
        if name in configs:
            found[name] += _short_retention(configs[name], need)
    return {name: problems for name, problems in found.items() if problems}


def loses_commands(config: Config) -> list[str]:
    """Why `control` would lose commands with these settings; empty if it keeps them permanently."""
    return [
        f"{setting} is {config[setting]}, must be {wanted}: commands would be lost"
        for setting, wanted in (("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1"))
        if config.get(setting, wanted) != wanted
    ]


def kept_ms(config: Config) -> int | None:
    """How long a topic with these settings keeps every record, if age is the only reason to delete one; None if not.

    A topic that deletes nothing by age may still lack records: they were deleted for another reason.
    """
    by_age = config.get("cleanup.policy") == "delete" and config.get("retention.bytes") == "-1"
    keeps_ms = int(config.get("retention.ms", -1))
    return keeps_ms if by_age and keeps_ms >= 0 else None


def _short_retention(config: Config, need: Need) -> list[str]:
    found, why = [], need.reason.format(f"{need.ms / DAY_MS:.1f} days")
    keeps, size = int(config.get("retention.ms", -1)), config.get("retention.bytes", "-1")
    if 0 <= keeps < need.ms:
        found.append(f"retention.ms is {keeps / DAY_MS:.1f} days, but {why}: {need.otherwise}")
    if need.ms > 0 and size != "-1":
        found.append(f"retention.bytes is {size}, must be -1, because {why}: {need.otherwise}")
    return found


def _problems(topics: Topics, name: str, config: Config, replicas: int) -> list[str]:
    wanted = {"cleanup.policy": "delete"} | topics.config(name)
    # How often compaction runs is a matter of disk space only.
    wanted.pop("segment.ms", None)
    problems = [
        f"{setting} is {config[setting]}, must be {value}"
        for setting, value in wanted.items()
        if config.get(setting, value) != value
    ]
    limit = int(config.get("max.message.bytes", DEFAULT_MESSAGE_BYTES))
    if limit < DEFAULT_MESSAGE_BYTES:
        problems.append(f"max.message.bytes is {limit}, must be at least {DEFAULT_MESSAGE_BYTES}")
    in_sync = int(config.get("min.insync.replicas", 1))
    if replicas >= SAFE_REPLICAS and in_sync < 2:
        problems.append(f"min.insync.replicas is {in_sync}, must be 2 with {replicas} replicas")
    return problems
