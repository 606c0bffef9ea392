"""kill-once: whatever is killed, every input record has exactly one output, and features count each event id once.

One partitioned backlog is drained by a scorer that is killed with `kill -9` at seeded points of progress, always with
lag, many times with a transaction open, while a second scorer joins and leaves. 20 % of the event ids are sent twice,
and 1 % of the records are garbage, with one dead letter each. Alerts, review sample and summaries follow from the
scores.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import ExitStack

import msgspec
import numpy as np

from proofs.compacted import compacted_row_differs, is_compacted
from proofs.kit import (
    Context,
    Ends,
    Result,
    Scorer,
    TopicContent,
    cards,
    publish,
    read_lineage,
    read_topic,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from stream_scorer.clock import SystemClock
from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.features.plan import make_plan
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import MISSING, Alert, Contribution, Score, ScoreSummary
from stream_scorer.serde.columns import take_labels
from stream_scorer.serde.decoder import LabelDecoder, TransactionDecoder, Transactions
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.garbage import GarbageMaker
from stream_scorer.simulate.generate import generate
from stream_scorer.spec import CheckedSpec
from stream_scorer.state.client import connect
from stream_scorer.state.row_format import TRANSACTION, unpack
from stream_scorer.state.rows import MemoryRowStore

N = 200_000
GARBAGE = 0.01
# Prefix of the keys of garbage.
BAD = b"bad-"
# A run that is scaled down for `make test` has fewer kills, which its figures show.
KILLS, MIN_KILLS, MIN_OPEN = 10, 5, 3
# Compacted rows: terminals with more transactions than count exactly.
MIN_COMPACTED = 20
SMALL, SMALL_KILLS, SMALL_MIN_KILLS, SMALL_MIN_OPEN = 30_000, 2, 1, 1


def run(context: Context, kills: int = KILLS, shards: int = 1, sabotage: str | None = None) -> Result:
    """See the module. `n` is the number of transactions before duplicates; `shards`: number of shards of the features.

    With `sabotage`, the scorers run with it instead of that of BREAK=1.
    """
    n = context.n or N
    rng = np.random.default_rng(context.seed)
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    keys, values = _input(n, context.seed, rng)
    topics = Topics()
    with services("kafka", "redis") as (_stack, at), ExitStack() as lifetime:
        bootstrap = str(at.kafka)
        publish(bootstrap, topics.transactions, keys, values)
        context.say(f"{len(values)} records published, {n} distinct")
        if context.broken:
            sabotage = sabotage or "outputs-outside,count-duplicates"
        first, second = (
            Scorer(
                context.folder,
                at,
                instance=f"scorer-{name}",
                ensemble=context.folder / "ensemble",
                # Small batches: more transactions to be caught in.
                arguments=[
                    "--shards",
                    str(shards),
                    *(["--batch", "64", "--pace-ms", "30"] if n < SMALL else ["--batch", "512"]),
                ],
                sabotage=sabotage,
            )
            for name in "ab"
        )
        for scorer in (first, second):
            lifetime.callback(scorer.close)
        _storm(context, result, bootstrap, first, second, len(values), rng, kills)
        wait_drained(bootstrap, [first], timeout_s=240)
        result.check("SIGTERM ends the scorer with exit 0 in 10 s", first.stop(10) == 0)
        _check_outputs(context, result, bootstrap, keys, values)
        without = check_features(result, bootstrap, str(at.redis), ("customer.", "customer_rhythm."))
        result.check("every score has its features", without == 0)
        if n >= SMALL:
            result.at_least("rows_compacted", result.figures["rows_compacted"], MIN_COMPACTED)
    return result


def _input(n: int, seed: int, rng: np.random.Generator) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of `n` transactions, 20 % of them sent once more a little later, byte for byte, and garbage."""
    config = SimulationConfig(
        seed=seed, customers=max(n // 40, 50), terminals=max(n // 150, 20), days=None, transactions=n
    )
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
    again = np.flatnonzero(rng.random(len(values)) < 0.2)
    place = np.concatenate([np.arange(len(values), dtype=np.float64), again + rng.uniform(0.5, 2_000.0, len(again))])
    order = np.argsort(place, kind="stable")
    index = np.concatenate([np.arange(len(values)), again])[order].tolist()
    keys, values = [keys[i] for i in index], [values[i] for i in index]
    maker = GarbageMaker(rng, max_oversized=0)  # these have megabytes
    for row in np.flatnonzero(rng.random(len(values)) < GARBAGE).tolist():
        keys[row], values[row] = b"%b%d" % (BAD, row), maker.make(values[row])[1]
    return keys, values


def _storm(
    context: Context,
    result: Result,
    bootstrap: str,
    first: Scorer,
    second: Scorer,
    total: int,
    rng: np.random.Generator,
    wanted: int,
) -> None:
    ends = Ends(bootstrap, Topics().contributions)
    few = total < SMALL
    kills = open_kills = 0
    killed_at, in_transaction = -1.0, few or rng.random() < 0.6
    started = joined = left = False
    points = iter(sorted(rng.uniform(0.04, 0.9, SMALL_KILLS if few else wanted)))
    first.start()
    point = next(points)
    deadline = time.monotonic() + max(400, 20 * wanted)
    while time.monotonic() < deadline:
        first.require_running()
        progress = ends.committed() / total
        if progress > 0.1 and kills and not started:
            second.start()
            started = True
        if started and not joined and "assigned" in second.log.read_text():
            joined = True
            context.say(f"second scorer has joined at {progress:.0%}")
        if joined and not left and progress > 0.6:
            result.check("the second scorer leaves with exit 0", second.stop() == 0)
            left = True
            context.say(f"second scorer leaves at {progress:.0%}")
        if progress < point:
            time.sleep(0.05)  # each look asks the broker about every partition
            continue
        if progress > 0.95:
            break
        # Half of the kills wait for an open transaction; the others come when they come, also while the scorer starts.
        if in_transaction:
            if progress <= killed_at:
                time.sleep(0.02)  # what is open is still what the last kill left
                continue
            _stop_in_a_transaction(ends, first)
        else:
            time.sleep(rng.uniform(0, 0.1))
        was_open = ends.transaction_open()
        first.kill()
        kills += 1
        killed_at, in_transaction = progress, few or rng.random() < 0.6
        open_kills += was_open
        context.say(f"kill {kills} at {progress:.0%}{', a transaction open' if was_open else ''}")
        first.start()
        try:
            point = next(points)
        except StopIteration:
            break
    if started and not joined:
        wait_until("the second scorer joins", lambda: "assigned" in second.log.read_text(), 30)
        joined = True
    if joined and not left:
        result.check("the second scorer leaves with exit 0", second.stop() == 0)
        left = True
    ends.close()
    result.check("a second scorer joined and left", joined and left)
    result.at_least("kills_with_lag", kills, SMALL_MIN_KILLS if few else max(MIN_KILLS, wanted // 2))
    result.at_least("kills_with_open_transaction", open_kills, SMALL_MIN_OPEN if few else MIN_OPEN)


def _stop_in_a_transaction(ends: Ends, scorer: Scorer) -> None:
    """Suspend the scorer while a transaction is open, so that the kill finds it open."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        wait_until("a transaction is open", ends.transaction_open, 20, 0.0)
        scorer.send(signal.SIGSTOP)
        time.sleep(0.05)  # a commit that is under way arrives
        if ends.transaction_open():
            return
        scorer.send(signal.SIGCONT)
    raise TimeoutError("no transaction stayed open when the scorer was suspended")


def _check_outputs(context: Context, result: Result, bootstrap: str, keys: list[bytes], values: list[bytes]) -> None:
    topics = Topics()
    inputs = read_topic(bootstrap, topics.transactions)
    scores = read_topic(bootstrap, topics.scores)
    contributions = read_topic(bootstrap, topics.contributions)
    dead = read_topic(bootstrap, topics.dead_letters)
    written = len(read_topic(bootstrap, topics.scores, uncommitted=True))
    sources = Counter((c.source.partition, c.source.offset) for c in contributions.decode(Contribution))
    places = list(zip(inputs.partition, inputs.offset, strict=True))
    wanted = {place for place, key in zip(places, inputs.key, strict=True) if not (key or b"").startswith(BAD)}
    good = [value for key, value in zip(keys, values, strict=True) if not key.startswith(BAD)]
    result.figures |= {
        "inputs": len(inputs),
        "event_ids_sent_twice": len(good) - len(set(good)),
        "scores": len(scores),
        "aborted_records": written - len(scores),
        "lost": len(wanted - set(sources)),
        "doubled": sum(count - 1 for count in sources.values()),
    }
    result.at_least("aborted_records", written - len(scores), 1)
    result.at_least("garbage", len(values) - len(good), 20)
    result.check("inputs are all there", len(inputs) == len(values) == len(keys))
    result.check("one score for each good input", len(scores) == len(good))
    letters = Counter((int(h["source.partition"] or -1), int(h["source.offset"] or -1)) for h in dead.headers)
    result.check("one dead letter for each bad one", letters == Counter(set(places) - wanted))
    result.check("one contribution record for each input offset", set(sources) == wanted and max(sources.values()) == 1)
    records = scores.decode(Score)
    result.check(
        "scores and contributions name the same events in the same order",
        [s.event_id for s in records] == [c.event_id for c in contributions.decode(Contribution)],
    )
    lineage = [(row.source.partition, row.source.offset, row.event_id) for row in read_lineage(bootstrap, topics)]
    expected = [(c.source.partition, c.source.offset, c.event_id) for c in contributions.decode(Contribution)]
    result.check("one row of lineage for each contribution, in the same order", lineage == expected)
    result.check(
        "every second copy is flagged as a duplicate",
        sum(s.duplicate for s in records) == result.figures["event_ids_sent_twice"],
    )
    _check_followers(result, bootstrap, records, len(dead), few=len(values) < SMALL)
    if context.broken:
        result.must_fail("one score for each good input", "summaries have the counts of the scores")
        result.must_fail("every second copy is flagged as a duplicate", "no event id stands twice in a row")
        if len(values) >= SMALL:  # few aborted batches may contain no alert
            result.must_fail("one alert for each score with another decision than approve")


def _check_followers(result: Result, bootstrap: str, scores: list[Score], dead: int, *, few: bool) -> None:
    """Alerts, review sample and summaries follow from `scores`, which are in log order."""
    topics = Topics()
    alerts, sample = (read_topic(bootstrap, topic).decode(Alert) for topic in (topics.alerts, topics.review_sample))
    result.check(
        "one alert for each score with another decision than approve",
        [_common(alert) for alert in alerts] == [_common(s) for s in scores if s.decision != "approve"],
    )
    drawn = [s for s in scores if s.review_propensity is not msgspec.UNSET]
    result.check(
        "the review sample has the scores that it drew", [_common(a) for a in sample] == list(map(_common, drawn))
    )
    if not few:  # one transaction in a thousand is drawn
        result.at_least("drawn_for_review", len(drawn), 20)
    counted, wanted = Counter[str](), Counter[str]({"dead letters": dead, "drawn": len(drawn)})
    for summary in read_topic(bootstrap, topics.score_summaries).decode(ScoreSummary):
        counted["dead letters"] += summary.dead_letters
        for pane in summary.panes:
            counted.update({"rows": pane.rows, "duplicates": pane.duplicates, "drawn": pane.sampled} | pane.decisions)
            counted.update({f"money {decision}": money for decision, money in pane.money.items()})
    for score in scores:
        wanted.update({"rows": 1, "duplicates": int(score.duplicate), score.decision: 1})
        wanted[f"money {score.decision}"] += score.value
    result.figures["summaries_differ"] = {name: counted[name] - wanted[name] for name in counted | wanted
                                          if counted[name] != wanted[name]}  # fmt: skip
    result.check("summaries have the counts of the scores", not result.figures["summaries_differ"])


def _common(score: Score) -> tuple[object, ...]:
    """What an alert has in common with its score."""
    return tuple(getattr(score, name) for name in Score.__struct_fields__)


def check_features(result: Result, bootstrap: str, redis_url: str, views: tuple[str, ...]) -> int:
    """Rows hold each event id once, and the features of every score equal a recomputation of the log.

    `views` are prefixes of the names of features that follow from the records of one partition. Returns how many scores
    were made without them; those are not compared.
    """
    checked = cards()
    inputs = _without_garbage(read_topic(bootstrap, Topics().transactions))
    transactions, rejected = TransactionDecoder(checked).decode(inputs.value, np.array(inputs.timestamp))
    assert not rejected
    _compare_rows(result, checked, transactions, redis_url)

    served = {(row.source.partition, row.source.offset): row for row in read_lineage(bootstrap, Topics())}
    columns = [i for i, name in enumerate(checked.features) if name.startswith(views)]
    differences = without = 0
    for partition in sorted(set(inputs.partition)):
        index = [i for i, p in enumerate(inputs.partition) if p == partition]
        again = _recompute(checked, [inputs.value[i] for i in index], np.array([inputs.timestamp[i] for i in index]))  # type: ignore[attr-defined]
        for row, i in enumerate(index):
            recorded = served[(partition, inputs.offset[i])]
            if any(recorded.feature_status[c] == MISSING for c in columns):
                without += 1
                continue
            got = np.array([np.nan if v is None else v for v in recorded.features])[columns]
            differences += not np.array_equal(got, again[row, columns], equal_nan=True)
    result.figures["feature_rows_compared"] = len(served) - without
    result.figures["feature_rows_different"] = differences
    result.check("features equal a recomputation from the log", differences == 0 and len(served) > without)
    return without


def _without_garbage(inputs: TopicContent) -> TopicContent:
    chosen = [i for i, key in enumerate(inputs.key) if not (key or b"").startswith(BAD)]
    columns = (getattr(inputs, name) for name in TopicContent.__annotations__)
    return TopicContent(*([column[i] for i in chosen] for column in columns))


def _compare_rows(result: Result, checked: CheckedSpec, transactions: Transactions, redis_url: str) -> None:
    """Rows hold the transactions of the log, in a compacted row the old ones as panes."""
    limit, plans = checked.spec.limits.row_entries, make_plan(checked).entities
    wanted: dict[str, set[tuple[int, int, int]]] = {}
    each = list(
        zip(
            transactions.event_time.tolist(), transactions.value.tolist(), transactions.id_hash.tolist(), strict=True
        )
    )  # fmt: skip
    newest = int(transactions.event_time.max())
    for index, name in enumerate(checked.spec.entities):
        for owner, event in zip(transactions.entity_ids[name], each, strict=True):
            if owner is not None:
                wanted.setdefault(f"{index}:{owner}", set()).add(event)
    client = connect(redis_url)
    rows = list(client.scan_iter(match="*:r:*", count=10_000))
    wrong = repeated = compacted = 0
    for start in range(0, len(rows), 5_000):
        part = rows[start : start + 5_000]
        for key, row in zip(part, client.mget(part), strict=True):
            entries, owner = unpack(row), key.decode().split(":r:", 1)[1]
            held = [(t, v, h) for t, v, h, kind in entries.tolist() if kind == TRANSACTION]
            repeated += len(held) - len(set(held))
            if not is_compacted(entries):
                wrong += set(held) != wanted[owner]
                continue
            compacted += 1
            content = Counter((t, v) for t, v, _ in wanted[owner]), Counter[tuple[int, int]]()
            plan = plans[int(owner.split(":", 1)[0])]
            wrong += not set(held) <= wanted[owner]
            wrong += bool(compacted_row_differs(entries, plan, content, limit, newest))
    result.figures |= {"rows": len(rows), "rows_compacted": compacted}
    result.check("every entity has its row", len(rows) == len(wanted))
    result.check("no event id stands twice in a row", repeated == 0)
    result.check("rows hold exactly the log's event ids, compacted ones their sums", wrong == 0 and len(rows) > 0)


def _recompute(checked, values, timestamps):  # type: ignore[no-untyped-def]
    """Features of one partition's records in log order, batch by batch through the kernel in this process."""
    transactions, _ = TransactionDecoder(checked).decode(values, timestamps)
    labels, _ = LabelDecoder(checked).decode([], timestamps[:0])
    from stream_scorer.serde.columns import take_transactions

    engine, store = FeatureEngine(checked), MemoryRowStore()
    source, out = SourcePartition("again", 0), []
    none = np.zeros(0, dtype=np.int64)
    for low in range(0, len(values), 777):
        rows = np.arange(low, min(low + 777, len(values)))
        events = EventBatch(
            take_transactions(transactions, rows),
            take_labels(labels, none),
            [Span(source, low, low + len(rows), -1)],
            np.zeros(len(rows), dtype=np.int64),
            rows,
            none,
            none,
        )
        enriched = engine.enrich(events, store)
        store.apply(enriched.update)
        out.append(enriched.matrix)
    return np.vstack(out)
