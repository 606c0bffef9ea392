"""features-batch: the same feature bytes whatever the batch size.

One backlog of transactions with second copies, late events and labels is scored on a real Kafka and Redis at 1, 7, 256
and 1,024 a batch, each size by a group with rows of its own. One partition, so that every entity is exact; labels are
read before the transactions that may see them. The features and statuses in `lineage`, as JSON, are
compared event by event, those of late transactions too, which are partial. A score with another reason in `degraded`,
because Redis did not answer in time, is not compared; there may be few of them. `N` is the number of transactions.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import msgspec
import numpy as np

from proofs.kit import Context, Result, Scorer, publish, read_lineage, read_topic, services, train_cards, wait_drained
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.records import FEATURES_PARTIAL, Score
from stream_scorer.simulate.config import HOUR_MS, SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_labels, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.simulate.labeller import history_labels
from stream_scorer.stack import StackAddresses

# Keys and values.
Records = tuple[list[bytes], list[bytes]]
# Event id, feature bytes, and the reasons of a score that lacks features.
Served = tuple[str, bytes, list[str]]
N = 8_000
SIZES = (1, 7, 256, 1_024)
# Below this many transactions the ends of that will do.
SMALL, SMALL_SIZES = 4_000, (1, 256)
SECOND_COPIES, LATE = 0.1, 0.1
MAX_DEGRADED = 0.01
DRAIN_S = 300


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    sizes = SIZES if n >= SMALL else SMALL_SIZES
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    labels, transactions = _input(result, context.seed, n)
    served: dict[int, list[Served]] = {}
    with services("kafka", "redis", partitions=1) as (_stack, at):
        for size in sizes:
            served[size] = _serve(context, result, at, size, labels, transactions)
    first = served[sizes[0]]
    for size in sizes[1:]:
        pairs = list(zip(first, served[size], strict=False))
        odd = [(a, b) for a, b in pairs if a[:2] != b[:2] and not (a[2] or b[2])]
        different = len(odd) + abs(len(first) - len(served[size]))
        for a, b in odd[:3]:
            context.say(f"at {sizes[0]}: {a}; at {size}: {b}")
        result.figures[f"different_at_{size}"] = different
        result.check(f"{size} a batch gives the bytes of {sizes[0]}", different == 0)
    for size in sizes:
        degraded = Counter(reason for *_, reasons in served[size] for reason in reasons)
        result.figures[f"degraded_at_{size}"] = dict(degraded)
        few = sum(bool(reasons) for *_, reasons in served[size]) <= MAX_DEGRADED * len(served[size])
        result.check(f"{size} a batch: at most {MAX_DEGRADED:.0%} of the scores are degraded", few)
    result.figures["sha256"] = hashlib.sha256(b"".join(value for _, value, _ in first)).hexdigest()
    result.at_least("rows", len(first), n)
    result.at_least("distinct_rows", len({value for _, value, _ in first}), n // 2)
    return result


def _serve(
    context: Context, result: Result, at: StackAddresses, size: int, labels: Records, transactions: Records
) -> list[Served]:
    """The scores in order; a group, topics and rows of its own."""
    bootstrap, topics, name = str(at.kafka), Topics(f"size-{size}."), f"size-{size}"
    TopicAdmin(bootstrap).create_all(topics, 1)
    publish(bootstrap, topics.labels, *labels)
    scorer = Scorer(
        context.folder, at, instance=name, ensemble=context.folder / "ensemble",
        arguments=["--batch", str(size), "--group", name, "--topic-prefix", topics.prefix, "--pace-ms", "0"],
        sabotage="forget-in-flight" if context.broken else None,
    )  # fmt: skip
    scorer.start()
    wait_drained(bootstrap, [scorer], group=name, topics=topics, timeout_s=DRAIN_S)
    publish(bootstrap, topics.transactions, *transactions)
    wait_drained(bootstrap, [scorer], group=name, topics=topics, timeout_s=DRAIN_S)
    result.check(f"{size} a batch: the scorer ends with exit 0", scorer.stop() == 0)
    records = read_lineage(bootstrap, topics)
    scores = read_topic(bootstrap, topics.scores).decode(Score)
    repeated = sum(score.duplicate for score in scores)
    context.say(f"{size} a batch: {len(records):,} scored, {repeated} second copies")
    result.check(f"{size} a batch: second copies are flagged", repeated == result.figures["second_copies"])
    encode = msgspec.json.encode
    partial = sum(FEATURES_PARTIAL in score.degraded for score in scores)
    result.at_least(f"partial_at_{size}", partial, 1)
    return [
        (
            record.event_id,
            encode(record.features) + encode(record.feature_status),
            [reason for reason in score.degraded if reason != FEATURES_PARTIAL],
        )
        for record, score in zip(records, scores, strict=True)
    ]


def _input(result: Result, seed: int, n: int) -> tuple[Records, Records]:
    """Labels, and transactions with second copies and late ones among them."""
    rng = np.random.default_rng(seed)
    config = SimulationConfig(seed=seed, customers=n // 40, days=None, transactions=n, fraud_rate=0.05)
    made = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    labels = history_labels(made, int(made.event_time[-1]))
    keys, values = encode_keys(made.customer_id), encode_values(made)
    place = made.event_time + np.where(rng.random(n) < LATE, rng.integers(0, 2 * HOUR_MS, n), 0)
    again = np.flatnonzero(rng.random(n) < SECOND_COPIES)
    places = np.concatenate([place, place[again] + rng.integers(1, 2 * HOUR_MS, len(again))])
    order = np.concatenate([np.arange(n), again])[np.argsort(places, kind="stable")].tolist()
    result.at_least("labels", len(labels.event_time), 10)
    result.at_least("second_copies", len(again), n // 20)
    label_records = encode_keys(labels.customer_id), encode_labels(labels)
    return label_records, ([keys[i] for i in order], [values[i] for i in order])
