"""verify: published scores are what their records say, and whatever is altered is found.

A real scorer scores `N` transactions on a real Kafka and Redis; `stream-scorer verify` computes all of them again and
finds no difference, not even in the last bit. Then, each in a copy of its own: one contribution is off by a millionth,
one feature by a millionth of itself, one score by a millionth, one decision is another, one bit of a member's file is
flipped. Every time it exits with 3 and says what.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from proofs.kit import (
    ROOT,
    Context,
    Result,
    Scorer,
    TopicContent,
    publish,
    read_topic,
    services,
    train_cards,
    wait_drained,
)
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.records import Score
from stream_scorer.replay.explain import Explanation
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.stack import StackAddresses

N = 100_000
# Of the published records, those copied for what is altered.
_COPIED = 5_000
Document = dict[str, Any]


def _contribution(_score: Document, lineage: Document) -> None:
    lineage["members"][0]["contribution"] += 1e-6


def _feature(_score: Document, lineage: Document) -> None:
    place = next(i for i, value in enumerate(lineage["features"]) if value)
    lineage["features"][place] *= 1 + 1e-6


def _published(score: Document, _lineage: Document) -> None:
    score["score"] += 1e-6


def _decision(score: Document, _lineage: Document) -> None:
    score["decision"] = "block" if score["decision"] == "approve" else "approve"


ALTERED: dict[str, tuple[Callable[[Document, Document], None], str]] = {
    "contribution": (_contribution, "contribution"),
    # On the log-odds scale: of a member score near 0 or 1 the difference may be within the tolerance.
    "feature": (_feature, "z"),
    "score": (_published, "score on `scores`"),
    "decision": (_decision, "decision"),
}


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    config = SimulationConfig(seed=context.seed, customers=max(n // 40, 50), days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    topics = Topics()
    with services("kafka", "redis", partitions=1) as (_stack, at):
        bootstrap = str(at.kafka)
        publish(bootstrap, topics.transactions, encode_keys(transactions.customer_id), encode_values(transactions))
        scorer = Scorer(
            context.folder,
            at,
            instance="scorer",
            ensemble=context.folder / "ensemble",
            sabotage="bend-contributions" if context.broken else None,
        )
        scorer.start()
        try:
            wait_drained(bootstrap, [scorer], timeout_s=180)
            scorer.stop()
        finally:
            scorer.close()
        done = _verify(at, context.folder / "ensemble", "--tolerance", "0", "--json")
        report = msgspec.json.decode(done.stdout) if done.stdout else {}
        result.figures |= {"scores": report.get("scores"), "different": report.get("different")}
        result.check("every score is computed again, 0 differ", done.returncode == 0 and report.get("different") == 0)
        result.at_least("n", report.get("scores", 0), n)
        if context.broken:
            return result
        scores, lineages = read_topic(bootstrap, topics.scores), read_topic(bootstrap, topics.contributions)
        for name, (alter, what) in ALTERED.items():
            _publish_altered(bootstrap, name, scores, lineages, alter)
            done = _verify(at, context.folder / "ensemble", "--topic-prefix", f"{name}.", "--json")
            found = msgspec.json.decode(done.stdout)
            result.check(
                f"one {name} altered: found, exit 3",
                done.returncode == 3 and found["different"] == 1 and what in found["by_what"],
            )
            context.say(f"one {name} altered: {found['by_what']}")
        _explain(context, result, at, scores.decode(Score))
        copy = _flip_a_bit(context.folder)
        done = _verify(at, copy)
        result.check("one bit of a member's file flipped: found, exit 3", done.returncode == 3 and "xgb" in done.stderr)
        context.say(done.stderr.strip().splitlines()[0])
    return result


def _explain(context: Context, result: Result, at: StackAddresses, scores: list[Score]) -> None:
    """The same record, told to a person."""
    chosen = max(scores, key=lambda score: score.score or 0.0)
    command = [sys.executable, "-m", "stream_scorer.cli.main", "explain", chosen.event_id, "--json"]
    command += ["--bootstrap", str(at.kafka), "--ensemble", str(context.folder / "ensemble")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    told = msgspec.json.decode(done.stdout, type=Explanation) if done.stdout else None
    result.check("explain tells the highest score from its record, exit 0", bool(
        done.returncode == 0 and told is not None and told.score == chosen and told.same
        and told.lineage.z is not None and told.lineage.base is not None
        and abs(told.lineage.base + sum(part.contribution for part in told.members) - told.lineage.z) <= 1e-9
        and sum(bool(part.inside) for part in told.members) >= 4
    ))  # fmt: skip


def _verify(at: StackAddresses, ensemble: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream_scorer.cli.main", "verify", "--bootstrap", str(at.kafka)]
    command += ["--ensemble", str(ensemble), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def _publish_altered(
    bootstrap: str,
    name: str,
    scores: TopicContent,
    lineages: TopicContent,
    alter: Callable[[Document, Document], None],
) -> None:
    """A copy of the outputs under a prefix of its own, one event of it altered."""
    topics = Topics(f"{name}.")
    TopicAdmin(bootstrap).create_all(topics, 1)
    decode, encode = msgspec.json.decode, msgspec.json.encode
    told = [list(content.value[:_COPIED]) for content in (scores, lineages)]
    place = len(told[0]) // 2
    score, lineage = decode(told[0][place] or b""), decode(told[1][place] or b"")
    alter(score, lineage)
    told[0][place], told[1][place] = encode(score), encode(lineage)
    for topic, values in zip((topics.scores, topics.contributions), told, strict=True):
        publish(bootstrap, topic, [b""] * len(values), [value or b"" for value in values])


def _flip_a_bit(folder: Path) -> Path:
    copy = folder / "altered"
    shutil.copytree(folder / "ensemble", copy, dirs_exist_ok=True)
    file = next(copy.glob("xgb.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return copy
