"""garbage: 1 % of the input is bad in every known way; each is dead-lettered with code and path, the rest is scored.

Bad records are identified by their coordinates, so nothing about them is taken from the product.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from proofs.kit import (
    CARDS_SPEC,
    Context,
    Result,
    Scorer,
    publish,
    read_topic,
    services,
    train_cards,
    wait_drained,
)
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Contribution
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.garbage import GARBAGE_KINDS, GarbageMaker
from stream_scorer.simulate.generate import generate

N = 50_000
SHARE = 0.01
# What the decoder may answer to each kind, and whether it must name the field.
EXPECTED: dict[str, tuple[set[str], bool]] = {
    "truncated": ({"not_json"}, False),
    "not_json": ({"not_json", "not_utf8", "wrong_type"}, False),
    "not_an_object": ({"wrong_type"}, False),
    "wrong_type": ({"wrong_type", "out_of_range"}, True),
    "missing_field": ({"missing_field"}, True),
    "not_a_number": ({"not_json"}, False),
    "huge_number": ({"out_of_range", "wrong_type"}, True),
    "absurd_time": ({"time_out_of_range", "out_of_range"}, True),
    "empty": ({"empty_value", "not_json"}, False),
    "latin_1": ({"not_utf8"}, False),
    "utf_16": ({"not_utf8", "not_json"}, False),
    "long_text": ({"out_of_range"}, True),
    "deep": ({"not_json"}, False),
    "oversized": ({"value_too_large"}, False),
}


def run(context: Context) -> Result:
    """See the module. `n` is the number of records, bad ones included."""
    n = context.n or N
    result = Result()
    rng = np.random.default_rng(context.seed)
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    config = SimulationConfig(seed=context.seed, customers=max(n // 40, 50), days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
    maker = GarbageMaker(rng)
    bad = np.flatnonzero(rng.random(n) < SHARE).tolist()
    kinds: dict[bytes, str] = {}
    for row in bad:
        kind, value = maker.make(values[row])
        # The key identifies a bad record, whatever its value.
        keys[row], values[row] = b"bad-%d" % row, value
        kinds[keys[row]] = kind
    bad_labels = [b"", b"{", b'{"event_id":"x"}', b'{"event_id":7}', b"\xff\xfe"]
    topics = Topics()
    with services("kafka", "redis") as (_stack, at):
        bootstrap = str(at.kafka)
        publish(bootstrap, topics.transactions, keys, values)
        publish(bootstrap, topics.labels, [b"bad-label-%d" % i for i in range(len(bad_labels))], bad_labels)
        scorer = Scorer(
            context.folder,
            at,
            instance="scorer",
            ensemble=context.folder / "ensemble",
            spec=CARDS_SPEC,
            sabotage="drop-bad" if context.broken else None,
        )
        scorer.start()
        wait_drained(bootstrap, [scorer], timeout_s=120)
        result.check("the scorer is still running and ends with exit 0", scorer.stop() == 0)
        inputs = read_topic(bootstrap, topics.transactions)
        dead = read_topic(bootstrap, topics.dead_letters)
        contributions = read_topic(bootstrap, topics.contributions).decode(Contribution)
    sent = {key: (value, place) for key, value, place in zip(
        inputs.key, inputs.value, zip(inputs.partition, inputs.offset, strict=True), strict=True
    ) if key in kinds}  # fmt: skip
    wrong_code, no_path, altered, misplaced = Counter[str](), Counter[str](), 0, 0
    seen: Counter[bytes] = Counter()
    for key, value, headers in zip(dead.key, dead.value, dead.headers, strict=True):
        if key not in kinds:
            continue
        assert key is not None
        seen[key] += 1
        kind = kinds[key]
        codes, wants_path = EXPECTED[kind]
        code = (headers["error.code"] or b"").decode()
        if code not in codes:
            wrong_code[f"{kind}: {code}"] += 1
        no_path[kind] += wants_path and not (headers["error.path"] or b"").startswith(b"$.")
        altered += value != sent[key][0]
        place = int(headers["source.partition"] or -1), int(headers["source.offset"] or -1)
        misplaced += place != sent[key][1] or headers["source.topic"] != topics.transactions.encode()
    labels_dead = sum((key or b"").startswith(b"bad-label-") for key in dead.key)
    scored = Counter((c.source.partition, c.source.offset) for c in contributions)
    good = {(p, o) for p, o, k in zip(inputs.partition, inputs.offset, inputs.key, strict=True) if k not in kinds}
    result.figures |= {
        "inputs": len(inputs),
        "scored": len(scored),
        "dead_letters": len(dead),
        "by_kind": dict(Counter(kinds[key] for key in seen)),
        "bytes_of_the_largest": max((len(v or b"") for v in dead.value), default=0),
    }
    result.at_least("bad", len(bad), SHARE * n / 2)
    result.at_least("kinds", len(set(kinds.values())), len(GARBAGE_KINDS))
    result.check("every bad record is dead-lettered exactly once", seen == Counter(dict.fromkeys(kinds, 1)))
    result.check("nothing else is", len(dead) == len(kinds) + labels_dead)
    result.check("bad labels are dead-lettered too", labels_dead == len(bad_labels))
    result.check("every code is one the kind may have", not wrong_code)
    result.figures["unexpected_codes"] = dict(wrong_code)
    result.check("every fault of a field names its path", not +no_path)
    result.check("the original bytes are kept", altered == 0)
    result.check("the source coordinates are right", misplaced == 0)
    result.check("every good record is scored exactly once", scored == Counter(dict.fromkeys(good, 1)))
    return result
