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
import pyarrow as pa

from proofs.kit import (
    ROOT,
    Context,
    Result,
    Scorer,
    TopicContent,
    publish,
    read_topic,
    recomputes_all,
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


def _contribution(_score: Document, contribution: Document, _lineage: list[bytes]) -> None:
    contribution["members"]["contribution"][0] += 1e-6


def _feature(_score: Document, contribution: Document, lineage: list[bytes]) -> None:
    """One feature of one row, by Arrow's own reader and writer."""
    offset = contribution["source"]["offset"]
    for place, value in enumerate(lineage):
        with pa.input_stream(pa.py_buffer(value), compression="zstd") as stream:
            table = pa.ipc.open_stream(stream).read_all()
        offsets = table["offset"].to_pylist()
        if offset not in offsets:
            continue
        index = table.schema.get_field_index("features")
        rows = table["features"].to_pylist()
        mine = rows[offsets.index(offset)]
        at = next(i for i, feature in enumerate(mine) if feature == feature and feature)
        mine[at] *= 1 + 1e-6
        field = table.schema.field(index)
        table = table.set_column(index, field, pa.array(rows, field.type))
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as packed, pa.ipc.new_stream(packed, table.schema) as writer:
            writer.write_table(table)
        lineage[place] = sink.getvalue().to_pybytes()
        return
    raise AssertionError(f"no lineage of offset {offset}")


def _published(score: Document, _contribution: Document, _lineage: list[bytes]) -> None:
    score["score"] += 1e-6


def _decision(score: Document, _contribution: Document, _lineage: list[bytes]) -> None:
    score["decision"] = "block" if score["decision"] == "approve" else "approve"


Alter = Callable[[Document, Document, list[bytes]], None]
ALTERED: dict[str, tuple[Alter, str]] = {
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
        published = len(read_topic(bootstrap, topics.scores))
        again = done.returncode == 0 and recomputes_all(report, published)
        result.check("every score is computed again, 0 differ", again)
        result.at_least("n", report.get("scores", 0), n)
        if context.broken:
            return result
        scores, contributions, lineage = (
            read_topic(bootstrap, topic) for topic in (topics.scores, topics.contributions, topics.lineage)
        )
        for name, (alter, what) in ALTERED.items():
            _publish_altered(bootstrap, name, scores, contributions, lineage, alter)
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
    """`explain` shows the highest score."""
    chosen = max(scores, key=lambda score: score.score or 0.0)
    command = [sys.executable, "-m", "stream_scorer.cli.main", "explain", chosen.event_id, "--json"]
    command += ["--bootstrap", str(at.kafka), "--ensemble", str(context.folder / "ensemble")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    shown = msgspec.json.decode(done.stdout, type=Explanation) if done.stdout else None
    result.check("explain shows the highest score from its record, exit 0", bool(
        done.returncode == 0 and shown is not None and shown.score == chosen and shown.same
        and shown.contribution.z is not None and shown.contribution.base is not None
        and abs(
            shown.contribution.base + sum(part.contribution for part in shown.members) - shown.contribution.z
        ) <= 1e-9
        and sum(bool(part.inside) for part in shown.members) >= 4
    ))  # fmt: skip


def _verify(at: StackAddresses, ensemble: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream_scorer.cli.main", "verify", "--bootstrap", str(at.kafka)]
    command += ["--ensemble", str(ensemble), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def _publish_altered(
    bootstrap: str,
    name: str,
    scores: TopicContent,
    contributions: TopicContent,
    lineage: TopicContent,
    alter: Alter,
) -> None:
    """A copy of the outputs under another prefix, with one event altered."""
    topics = Topics(f"{name}.")
    TopicAdmin(bootstrap).create_all(topics, 1)
    decode, encode = msgspec.json.decode, msgspec.json.encode
    outputs = [[value or b"" for value in content.value[:_COPIED]] for content in (scores, contributions)]
    records = [value or b"" for value in lineage.value]
    place = len(outputs[0]) // 2
    score, contribution = decode(outputs[0][place]), decode(outputs[1][place])
    alter(score, contribution, records)
    outputs[0][place], outputs[1][place] = encode(score), encode(contribution)
    for topic, values in zip((topics.scores, topics.contributions, topics.lineage), [*outputs, records], strict=True):
        publish(bootstrap, topic, [b""] * len(values), values)


def _flip_a_bit(folder: Path) -> Path:
    copy = folder / "altered"
    shutil.copytree(folder / "ensemble", copy, dirs_exist_ok=True)
    file = next(copy.glob("xgb.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return copy
