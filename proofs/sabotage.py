"""``python -m proofs.sabotage NAME[,NAME] run ...``: the scorer with one property broken, for BREAK=1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any


def outputs_outside_the_transaction() -> None:
    """Scores, alerts and summaries go out by a plain producer: what an aborted batch wrote stays visible."""
    from confluent_kafka import Producer

    from stream_scorer.kafka.config import producer_config
    from stream_scorer.kafka.transactions import Transaction

    inside = Transaction.produce
    plain: list[Producer] = []

    def produce(self: Any, topic: str, partition: int, key: Any, value: Any, headers: Any = None) -> None:
        if not topic.endswith(("scores", "alerts", "score-summaries")):
            inside(self, topic, partition, key, value, headers)
            return
        if not plain:
            plain.append(Producer(producer_config(sys.argv[sys.argv.index("--bootstrap") + 1], "plain")))
        plain[0].produce(topic, value, key, partition)
        plain[0].poll(0)

    Transaction.produce = produce  # type: ignore[method-assign]


def count_duplicates() -> None:
    """A repeated event id counts again."""
    import numpy as np

    from stream_scorer.features import kernel

    kernel.find_duplicates = lambda _rows, key_of, *_: np.zeros(len(key_of), dtype=np.bool_)


def drop_bad_records() -> None:
    """What cannot be decoded vanishes."""
    from stream_scorer.serde import decoder

    decode_each = decoder.decode_each

    def silently(*arguments: Any) -> Any:
        structs, rows, _ = decode_each(*arguments)
        return structs, rows, []

    decoder.decode_each = silently


def bend_contributions() -> None:
    """One member's contribution is off by a millionth."""
    from stream_scorer.ensemble.ensemble import Ensemble

    combine = Ensemble.combine

    def bent(self: Any, answers: Any) -> Any:
        scored = combine(self, answers)
        scored.contributions[:, 0] += 1e-6
        return scored

    Ensemble.combine = bent  # type: ignore[method-assign]


def score_halves_of_batches() -> None:
    """Each half of a micro-batch takes the lineup that is in force by then."""
    import time

    from stream_scorer.pipeline.publish import OutputWriter
    from stream_scorer.pipeline.score import Scoring

    made: list[Any] = []
    make, in_order = Scoring.__init__, OutputWriter._in_order

    def remember(self: Any, *arguments: Any, **more: Any) -> None:
        make(self, *arguments, **more)
        made.append(self)

    def halves(self: Any, batch: Any) -> Any:
        half = len(batch.events.transactions) // 2
        yield from [output for output in in_order(self, batch) if output[0] < half]
        time.sleep(0.02)
        made[0].process(batch)
        yield from [output for output in in_order(self, batch) if output[0] >= half]

    Scoring.__init__ = remember  # type: ignore[method-assign]
    OutputWriter._in_order = halves  # type: ignore[method-assign]


def forget_last_good() -> None:
    """The last good version is dropped when another one is promoted, so a rollback has to load it."""
    from stream_scorer.control import follower, state

    follower.versions_of = lambda wanted: list(dict.fromkeys(state._in_play(wanted)))  # type: ignore[attr-defined]


def accept_stale_commands() -> None:
    """A command counts whatever offset it expects."""
    import msgspec

    from stream_scorer.control import state

    decode, add = state._decode, state.History.add

    def accept(self: Any, offset: int, value: bytes | None) -> Any:
        try:
            value = msgspec.json.encode(msgspec.structs.replace(decode(value or b""), expected_offset=offset))
        except msgspec.DecodeError:
            pass
        return add(self, offset, value)

    state.History.add = accept  # type: ignore[method-assign]


def put_a_faulty_member() -> None:
    """The XGBoost member does what the file named by FAULT says; see the proof `member-faults`."""
    import ctypes
    import os
    import time
    from pathlib import Path

    import numpy as np

    from stream_scorer.ensemble import ensemble

    load, path = ensemble.load_member, Path(os.environ["FAULT"])  # type: ignore[attr-defined]

    class Faulty:
        def __init__(self, member: Any) -> None:
            self._member = member

        def predict(self, inputs: Any) -> Any:
            fault, n = path.read_text(), len(inputs)
            if fault == "raises":
                raise RuntimeError("as the proof wants")
            if fault == "hangs":
                time.sleep(8)
            if fault == "slow":
                time.sleep(0.5)
            if fault == "holds-the-lock":
                ctypes.PyDLL(None).sleep(3_600)
            answers = {
                "returns-nan": np.full(n, np.nan),
                "another-shape": np.zeros((n, 2)),
                "out-of-range": np.full(n, 7.0),
            }
            return answers.get(fault, self._member.predict(inputs))

    def load_faulty(kind: Any, data: bytes, n_inputs: int) -> Any:
        member = load(kind, data, n_inputs)
        return Faulty(member) if kind == "xgboost-ubj" else member

    ensemble.load_member = load_faulty  # type: ignore[assignment, attr-defined]


def put_a_faulty_member_unguarded() -> None:
    """The same without the bulkhead: every member is always called, and waited for."""
    from stream_scorer import app

    put_a_faulty_member()
    app.running_bulkhead = lambda *_: nullcontext(None)


def miscount_summaries() -> None:
    """In every batch one row is summarised under another decision."""
    from stream_scorer.pipeline.summarise import Summariser

    summarise = Summariser.summarise

    def off_by_one(self: Any, batch: Any, arm: str) -> Any:
        summaries = summarise(self, batch, arm)
        pane = next((pane for summary in summaries for pane in summary.panes if pane.decisions["approve"]), None)
        if pane is not None:
            pane.decisions["approve"] -= 1
            pane.decisions["review"] += 1
        return summaries

    Summariser.summarise = off_by_one  # type: ignore[method-assign]


def lose_entries() -> None:
    """The last entry of every update never reaches Redis."""
    from stream_scorer.state.redis_rows import RedisRowStore
    from stream_scorer.state.rows import RowUpdate

    apply = RedisRowStore.apply

    def short(self: Any, update: RowUpdate) -> None:
        if len(update):
            bounds = update.bounds.copy()
            bounds[-1] -= 1
            update = RowUpdate(
                update.spans, update.keys, bounds, update.entries[:-1], update.span_of[:-1], update.offset[:-1],
                update.opens[:-1], update.compactions,
            )  # fmt: skip
        apply(self, update)

    RedisRowStore.apply = short  # type: ignore[method-assign]


def forget_in_flight() -> None:
    """Features see what is in Redis and not what is still on its way there."""
    from stream_scorer.pipeline import enrich
    from stream_scorer.pipeline.in_flight import InFlight

    InFlight.snapshot = lambda *_: ()  # type: ignore[method-assign]
    enrich.require_contiguous = lambda *_: None  # type: ignore[attr-defined]


def drop_refused_updates() -> None:
    """An update that Redis refuses is forgotten, and the invariant of fresh features is not checked."""
    from stream_scorer.pipeline import enrich
    from stream_scorer.pipeline.apply import Apply

    process = Apply.process

    def forget(self: Any, batch: Any) -> None:
        process(self, batch)
        refused = self._in_flight.blocked_by
        while refused is not None and (update := self._in_flight.next_committed()) is not None:
            self._in_flight.remove(update)

    Apply.process = forget  # type: ignore[method-assign]
    enrich.require_contiguous = lambda *_: None  # type: ignore[attr-defined]


def hand_on_as_fetched() -> None:
    """A backlog is handed on in the order in which it was fetched."""
    from stream_scorer.kafka.reader import InputReader

    InputReader._lagging = lambda *_: set()  # type: ignore[method-assign]


def see_no_rise() -> None:
    """Whatever the counts of a pair are, they are evidence for a harmless change."""
    from stream_scorer.control.verdict import Evidence

    Evidence.of = classmethod(lambda cls, *_: cls(0.0, 0.0, 4.0, 4.0))  # type: ignore[method-assign, assignment]


def ignore_sensitive() -> None:
    """No field counts as sensitive."""
    from stream_scorer.spec.model import CheckedSpec

    CheckedSpec.sensitive_fields = property(lambda _: [])  # type: ignore[method-assign, assignment]


def log_secrets_as_a_library_does() -> None:
    """No property is broken: a library logs all settings of the environment, and the files of secrets."""
    import logging
    import os
    from pathlib import Path

    from stream_scorer.cli import options

    configure = options.configure  # type: ignore[attr-defined]

    def configure_and_log(*arguments: Any) -> None:
        configure(*arguments)
        given = {name: value for name, value in os.environ.items() if name.startswith("STREAM_SCORER_")}
        files = [Path(value).read_text(encoding="utf-8") for name, value in given.items() if name.endswith("_FILE")]
        for text in (*given.values(), *files):
            # Not as an argument: a repeated message is logged only once.
            logging.getLogger("a.library").warning(f"connecting with {text.strip()}")

    options.configure = configure_and_log  # type: ignore[attr-defined]


def keep_secrets_in_texts() -> None:
    """Nothing is removed from logs and messages."""
    from stream_scorer.cli import main as module
    from stream_scorer.ensemble import registry
    from stream_scorer.observability import logs

    for user in (logs, module, registry):
        user.scrub = lambda text, _secrets=(): text  # type: ignore[attr-defined]


def raw_errors() -> None:
    """Errors reach the person as they were raised."""
    from stream_scorer.cli import main as module

    module.main = lambda: module.cli.main(standalone_mode=False)


def handicap() -> None:
    """No property is broken: one version takes seconds to load, and the clock is off, as the environment says.

    SIGUSR2 prints all stack traces.
    """
    import faulthandler
    import os
    import signal
    import time

    from stream_scorer.clock import SystemClock
    from stream_scorer.ensemble.ensemble import Ensemble

    faulthandler.register(signal.SIGUSR2, all_threads=True)
    load, now_ms = Ensemble.load, SystemClock.now_ms
    slow, slow_s = os.environ.get("STORM_SLOW_VERSION"), float(os.environ.get("STORM_SLOW_S", "0"))
    skew_ms = int(os.environ.get("STORM_CLOCK_SKEW_MS", "0"))

    def load_slowly(folder: Any, *, version: str, **more: Any) -> Any:
        if version == slow:
            time.sleep(slow_s)
        return load(folder, version=version, **more)

    Ensemble.load = load_slowly  # type: ignore[method-assign]
    SystemClock.now_ms = lambda self: now_ms(self) + skew_ms  # type: ignore[method-assign]


def skip_entries() -> None:
    """One entry in 10,000 never reaches its row, and the applied offset says that it did."""
    import numpy as np
    import xxhash

    from stream_scorer.state.redis_rows import RedisRowStore
    from stream_scorer.state.row_format import HASH
    from stream_scorer.state.rows import RowUpdate

    apply = RedisRowStore.apply

    def skip(self: Any, update: RowUpdate) -> None:
        owners = np.repeat(np.arange(len(update.keys)), np.diff(update.bounds))
        of_key = np.array([xxhash.xxh3_64_intdigest(key) >> 1 for key in update.keys], dtype=np.int64)
        # The same entry whenever it is applied. One that opens a row stays: rows that are lost are noticed.
        chosen = (
            (update.entries[:, HASH] ^ of_key[owners]) % 10_000 == 7 if len(owners) else np.zeros(0, dtype=np.bool_)
        )
        kept = ~(chosen & (update.opens == 0))
        if not kept.all():
            bounds = np.concatenate([[0], np.cumsum(np.bincount(owners[kept], minlength=len(update.keys)))])
            full = np.diff(bounds) > 0
            update = RowUpdate(
                update.spans,
                [key for key, holds in zip(update.keys, full.tolist(), strict=True) if holds],
                bounds[np.concatenate([[True], full])],
                update.entries[kept],
                update.span_of[kept],
                update.offset[kept],
                update.opens[kept],
                update.compactions,
            )
        apply(self, update)

    RedisRowStore.apply = skip  # type: ignore[method-assign]


def keep_batches() -> None:
    """Every micro-batch leaves 100 kB in memory."""
    from stream_scorer.pipeline.publish import OutputWriter

    write = OutputWriter.write
    kept: list[bytes] = []

    def write_and_keep(self: Any, batch: Any, sink: Any) -> None:
        kept.append(b"x" * 100_000)
        write(self, batch, sink)

    OutputWriter.write = write_and_keep  # type: ignore[method-assign]


def lose_applied_offsets() -> None:
    """Whenever a monitor opens its counters, the applied offsets are gone, and the counts are not."""
    from stream_scorer.state.counters import CounterStore

    opened = CounterStore.open

    def lose(self: Any, new_epoch: str, first: Any) -> Any:
        for source in first:
            self._client.hdel(self._head, f"m:{source}")
        return opened(self, new_epoch, first)

    CounterStore.open = lose  # type: ignore[method-assign]


def unseeded() -> None:
    """The seed of boosted trees is drawn in each process."""
    import secrets

    from stream_scorer.train import trees

    train = trees._lightgbm

    def with_any_seed(parameters: Any, rows: Any, names: Any, seed: int) -> bytes:
        return train(parameters, rows, names, seed if "boosting" in parameters else secrets.randbelow(2**31))

    trees._lightgbm = with_any_seed


def skew_a_feature() -> None:
    """The scorer serves another value of one feature than the log gives."""
    from stream_scorer.features.engine import FeatureEngine

    enrich = FeatureEngine.enrich

    def skewed(self: Any, *arguments: Any) -> Any:
        enriched = enrich(self, *arguments)
        enriched.matrix[:, self.feature_names.index("customer.count_1d")] += 1.0
        return enriched

    FeatureEngine.enrich = skewed  # type: ignore[method-assign]


SABOTAGES: dict[str, Callable[[], None]] = {
    "outputs-outside": outputs_outside_the_transaction,
    "count-duplicates": count_duplicates,
    "drop-bad": drop_bad_records,
    "bend-contributions": bend_contributions,
    "halves-of-batches": score_halves_of_batches,
    "forget-last-good": forget_last_good,
    "stale-commands": accept_stale_commands,
    "faulty-member": put_a_faulty_member,
    "faulty-member-unguarded": put_a_faulty_member_unguarded,
    "miscount-summaries": miscount_summaries,
    "lose-entries": lose_entries,
    "forget-in-flight": forget_in_flight,
    "drop-refused": drop_refused_updates,
    "unaligned": hand_on_as_fetched,
    "blind-watch": see_no_rise,
    "ignore-sensitive": ignore_sensitive,
    "library-logs-secrets": log_secrets_as_a_library_does,
    "no-scrub": keep_secrets_in_texts,
    "raw-errors": raw_errors,
    "handicap": handicap,
    "keep-batches": keep_batches,
    "skip-entries": skip_entries,
    "lose-applied-offsets": lose_applied_offsets,
    "unseeded": unseeded,
    "skew-a-feature": skew_a_feature,
}

if __name__ == "__main__":
    for name in sys.argv.pop(1).split(","):
        SABOTAGES[name]()
    from stream_scorer.cli import main as module

    module.main()
