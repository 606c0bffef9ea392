"""replay-thin: a replay of what the live scorer served on one partition gives the same scores and contributions.

Transactions and labels arrive side by side while a scorer runs, in whatever micro-batches that makes. `stream-scorer
replay --as-served --compare` then goes over the same range with several batch sizes, and must give the bytes that were
served. A plain replay, which does not use what was served, must give the same bytes whatever its batch size.

A replay touches nothing live. The first one runs while the scorer does: the names, settings and ends of topics,
consumer groups, committed offsets, transactional ids and the scorer's assignment must not change. Redis is not compared
then, because the scorer writes to it without any traffic: a minute after its start its housekeeping takes a turn (the
key ``{namespace}:turn``) and may delete expired rows. The other replays run after the scorer has ended, when nothing
else writes: every key of Redis must keep its value.

``python -m proofs.replay_thin replay ...`` is the replay with one label left out, for BREAK=1.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from proofs.kit import (
    CARDS_SPEC,
    ROOT,
    Context,
    Result,
    Scorer,
    cards,
    die_with_parent,
    group_offsets,
    log_ends,
    read_lineage,
    read_topic,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.config import client_config
from stream_scorer.kafka.open_loop import OpenLoopProducer
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Contribution, Score
from stream_scorer.serde.canonical import canonical
from stream_scorer.simulate import (
    LabellerConfig,
    SimulationConfig,
    encode_keys,
    encode_labels,
    encode_values,
    generate,
    history_labels,
)
from stream_scorer.stack import StackAddresses
from stream_scorer.state.client import connect

N = 24_000
MIN_SCORES, MIN_LABELS, MIN_WITH_RISK, MIN_BATCHES, MIN_KEYS = 20_000, 100, 1_000, 20, 1_000
# A run with fewer records is scaled down: a tenth of everything, and one batch size of replays as served.
SMALL, SMALL_SHARE = 20_000, 0.1
# Transactions arrive in bursts of so many (log-uniform), each after the labels due by its end, at this rate on average:
# some micro-batches are small, some are large enough to be applied to Redis in parts.
BURST = (5, 1_000)
RATE = 2_500
# Kafka's internal topic of transactional ids.
TRANSACTIONS = "__transaction_state"
BATCHES = (1_024, 64, 7)
REPLAY_TIMEOUT_S = 300
# In the scorer's log, once per assignment of partitions.
ASSIGNED = "assigned"


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions."""
    n = context.n or N
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    with services("kafka", "redis", partitions=1) as (_stack, at):
        scorer = Scorer(context.folder, at, instance="scorer", ensemble=context.folder / "ensemble")
        scorer.start()
        wait_until("the scorer has its partitions", lambda: ASSIGNED in scorer.log.read_text(), 90)
        _traffic(context, str(at.kafka), n)
        wait_drained(str(at.kafka), [scorer], timeout_s=180)
        share = 1.0 if n >= SMALL else SMALL_SHARE
        served = _served(result, str(at.kafka), share)
        first, *others = BATCHES if share == 1.0 else BATCHES[:1]
        assigned, log = scorer.log.read_text().count(ASSIGNED), _log_state(at)
        _as_served(context, result, at, first, served)
        scorer.require_running()
        result.check(
            "while the scorer runs: it keeps its partitions", scorer.log.read_text().count(ASSIGNED) == assigned
        )
        result.check("while the scorer runs: topics and offsets stay as they are", _same(context, log, _log_state(at)))
        result.check("the scorer ends with exit 0", scorer.stop() == 0)
        log, keys = _log_state(at), _redis_state(at)
        for batch in others:
            _as_served(context, result, at, batch, served)
        _plain(context, result, at)
        _skew(context, result, at)
        result.check("without the scorer: topics and offsets stay as they are", _same(context, log, _log_state(at)))
        touched = _touched(keys, _redis_state(at))
        for key, how in touched.items():
            context.say(f"Redis: {key!r} {how}")
        result.check("without the scorer: every key of Redis keeps its value", not touched)
        result.at_least("redis_keys", len(keys), MIN_KEYS * share)
    return result


def _traffic(context: Context, bootstrap: str, n: int) -> None:
    """Transactions in order of event time, each burst after the labels that were known by its end."""
    config = SimulationConfig(
        seed=context.seed,
        customers=max(n // 16, 50),
        terminals=max(n // 120, 20),
        days=None,
        transactions=n,
        fraud_rate=0.03,
    )
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    # Chargebacks within a day and a review of one in fifty: labels early enough to be seen by many transactions.
    rules = LabellerConfig(seed=context.seed, review_probability=0.02, chargeback_median_ms=12 * 3_600_000)
    labels = history_labels(transactions, int(transactions.event_time[-1]), rules)
    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
    label_keys, label_values = encode_keys(labels.customer_id), encode_labels(labels)
    context.say(f"{n} transactions, {len(labels)} labels")
    topics, sent, rng = Topics(), 0, np.random.default_rng(context.seed)
    with OpenLoopProducer(bootstrap, client_id="proof", clock=SystemClock(), sleep=time.sleep) as producer:
        low = 0
        while low < n:
            high = min(low + int(np.exp(rng.uniform(*np.log(BURST)))), n)
            due = int(np.searchsorted(labels.labelled_at, transactions.event_time[high - 1], side="right"))
            producer.publish(topics.labels, label_keys[sent:due], label_values[sent:due])
            producer.publish(topics.transactions, keys[low:high], values[low:high])
            time.sleep((high - low) / RATE)
            low, sent = high, due
        producer.publish(topics.labels, label_keys[sent:], label_values[sent:])


def _served(result: Result, bootstrap: str, share: float) -> str:
    """Counts that make the proof meaningful; answers the digest of what was served, as a replay reports it."""
    topics = Topics()
    scores = read_topic(bootstrap, topics.scores).decode(Score)
    contributions = read_topic(bootstrap, topics.contributions).decode(Contribution)
    lineage = read_lineage(bootstrap, topics)
    labelled = {json.loads(value or b"{}")["event_id"] for value in read_topic(bootstrap, topics.labels).value}
    risk = [i for i, name in enumerate(cards().features) if name.startswith("terminal_risk.")]
    with_risk = sum(any(row.features[i] for i in risk) for row in lineage)
    digest = hashlib.sha256()
    for served in zip(scores, contributions, lineage, strict=True):
        for record in served:
            digest.update(canonical(record))
    sizes = np.diff([i for i, row in enumerate(lineage) if row.place == 0] + [len(lineage)])
    result.figures |= {"labels": len(labelled), "largest_served_batch": int(sizes.max())}
    result.at_least("scores", len(scores), MIN_SCORES * share)
    result.at_least("labels_joined", sum(s.event_id in labelled for s in scores), MIN_LABELS * share)
    result.at_least("scores_with_terminal_risk", with_risk, MIN_WITH_RISK * share)
    result.at_least("served_batches", len(sizes), MIN_BATCHES * share)
    result.at_least("different_served_batch_sizes", len(set(sizes.tolist())), 5 if share == 1 else 3)
    return digest.hexdigest()


def _as_served(context: Context, result: Result, at: StackAddresses, batch: int, served: str) -> None:
    code, report, seconds = _replay(context, at, f"served-{batch}", ["--as-served", "--compare", "--batch", str(batch)])
    name = f"as served, at most {batch} a batch"
    result.check(f"{name}: exit 0", code == 0)
    result.check(f"{name}: no difference", report.get("different") == 0)
    result.check(f"{name}: every score compared", report.get("compared") == result.figures["scores"])
    # Counted and hashed here, from the topics: what `--compare` says is not taken at its word.
    result.check(f"{name}: canonical bytes are those of the topics", report.get("scores_sha256") == served)
    result.figures[f"seconds_as_served_{batch}"] = round(seconds, 1)


def _plain(context: Context, result: Result, at: StackAddresses) -> None:
    digests = []
    for batch in (1_000, 33):
        code, report, _ = _replay(context, at, f"plain-{batch}", ["--batch", str(batch)])
        result.check(f"plain, at most {batch} a batch: exit 0", code == 0)
        result.check(f"plain, {batch}: every score", report.get("scored") == result.figures["scores"])
        digests.append(report.get("scores_sha256"))
    result.check("plain: the same canonical bytes whatever the batch size", len(set(digests)) == 1 and digests[0])


def _skew(context: Context, result: Result, at: StackAddresses) -> None:
    """What `features skew` says of the same scores: of features that labels do not touch, no difference."""
    command = [sys.executable, "-m", "stream_scorer.cli.main", "features", "skew", "--json", "--tolerance", "1"]
    command += ["--bootstrap", str(at.kafka), "--spec", str(CARDS_SPEC)]
    command += ["--ensemble", str(context.folder / "ensemble")]
    done = subprocess.run(
        die_with_parent(command), capture_output=True, text=True, timeout=REPLAY_TIMEOUT_S, cwd=ROOT, check=False
    )
    report = json.loads(done.stdout) if done.returncode == 0 else {"features": [], "scores": 0}
    different = {f["name"]: f["different"] for f in report["features"] if f["different"]}  # type: ignore[union-attr]
    result.figures["skew_different"] = different
    result.check("features skew compares every score", report["scores"] == result.figures["scores"])
    result.check(
        "and finds none to differ by what labels did not touch", all(n.startswith("terminal_risk.") for n in different)
    )


def _replay(context: Context, at: StackAddresses, name: str, arguments: list[str]) -> tuple[int, dict[str, Any], float]:
    module = "proofs.replay_thin" if context.broken else "stream_scorer.cli.main"
    command = [sys.executable, "-m", module, "replay", "--from-topics", "--json", "--bootstrap", str(at.kafka)]
    command += ["--spec", str(CARDS_SPEC), "--ensemble", str(context.folder / "ensemble")]
    command += ["--out", str(context.folder / name), *arguments]
    started = time.monotonic()
    done = subprocess.run(
        die_with_parent(command),
        capture_output=True,
        text=True,
        timeout=REPLAY_TIMEOUT_S,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    seconds = time.monotonic() - started
    last = done.stderr.strip().splitlines()[-1:] or [""]
    context.say(f"{name}: exit {done.returncode} in {seconds:.1f} s {last[0] if done.returncode else ''}")
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, seconds


def _log_state(at: StackAddresses) -> dict[str, Any]:
    """The state of the broker that a replay must not change; see the module."""
    # A running scorer writes its status every few seconds.
    topics = [topic for topic in Topics().all() if topic != Topics().scorer_status]
    offsets = group_offsets(str(at.kafka), "stream-scorer", [Topics().transactions, Topics().labels])
    admin = AdminClient(client_config(str(at.kafka), "replay-thin"))
    found = admin.list_topics(timeout=10).topics
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in found]
    settings = {
        resource.name: {entry.name: entry.value for entry in described.result().values()}
        for resource, described in admin.describe_configs(resources, request_timeout=10).items()
    }
    return {
        "topics": {name: len(topic.partitions) for name, topic in found.items()},
        "settings": settings,
        "groups": {group.group_id for group in admin.list_consumer_groups(request_timeout=10).result().valid},
        "transactional ids": set(read_topic(str(at.kafka), TRANSACTIONS, uncommitted=True).key),
        "ends": log_ends(str(at.kafka), topics),
        "offsets": offsets,
    }


def _same(context: Context, before: dict[str, Any], after: dict[str, Any]) -> bool:
    for name in before:
        if before[name] != after[name]:
            context.say(f"Kafka: {name} were {before[name]} and are {after[name]}")
    return before == after


def _redis_state(at: StackAddresses) -> dict[bytes, tuple[bytes, bool]]:
    """Of every key, the serialised value, and whether the key expires."""
    client = connect(str(at.redis))
    keys = list(client.scan_iter(count=10_000))
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.dump(key)
        pipe.ttl(key)
    answers = pipe.execute()
    return {
        key: (value, ttl >= 0)
        for key, value, ttl in zip(keys, answers[::2], answers[1::2], strict=True)
        if value is not None
    }


def _touched(before: dict[bytes, tuple[bytes, bool]], after: dict[bytes, tuple[bytes, bool]]) -> dict[bytes, str]:
    """Keys that differ and how. A key that was set to expire may have expired."""
    found = dict.fromkeys(after.keys() - before.keys(), "is new")
    for key, (value, expires) in before.items():
        if key not in after:
            found |= {} if expires else {key: "is gone"}
        elif after[key][0] != value:
            found[key] = "has another value"
    return found


def _with_one_label_left_out() -> None:
    """The replay, blind to the first label that says fraud."""
    from stream_scorer.cli import main as module
    from stream_scorer.kafka.range_reader import RangeReader

    read = RangeReader.read

    def without(self: Any, source: Any, start: int, stop: int) -> Iterator[Any]:
        found = source.topic != Topics().labels
        for chunk in read(self, source, start, stop):
            frauds = [] if found else [i for i, value in enumerate(chunk.value) if b'"fraud"' in (value or b"")]
            if frauds:
                found = True
                chunk = chunk.take(np.flatnonzero(np.arange(len(chunk)) != frauds[0]))
            yield chunk

    RangeReader.read = without  # type: ignore[method-assign]
    module.main()


if __name__ == "__main__":
    _with_one_label_left_out()
