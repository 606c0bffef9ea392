"""``python -m proofs.sabotage NAME run ...``: the scorer with one property broken, for BREAK=1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def outputs_outside_the_transaction() -> None:
    """Scores go out by a plain producer: what an aborted batch wrote stays visible."""
    from confluent_kafka import Producer

    from stream_scorer.kafka.config import producer_config
    from stream_scorer.kafka.transactions import Transaction

    inside = Transaction.produce
    plain: list[Producer] = []

    def produce(self: Any, topic: str, partition: int, key: Any, value: Any, headers: Any = None) -> None:
        if not topic.endswith("scores"):
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

    kernel.find_duplicates = lambda *arguments: np.zeros(len(arguments[3]), dtype=np.bool_)


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

    score = Ensemble.score

    def bent(self: Any, features: Any) -> Any:
        scored = score(self, features)
        scored.contributions[:, 0] += 1e-6
        return scored

    Ensemble.score = bent  # type: ignore[method-assign]


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
                update.opens[:-1], update.folds,
            )  # fmt: skip
        apply(self, update)

    RedisRowStore.apply = short  # type: ignore[method-assign]


def forget_in_flight() -> None:
    """Features see what is in Redis and not what is still on its way there."""
    from stream_scorer.pipeline.commit import Committer

    Committer.in_flight = lambda *_: ()  # type: ignore[method-assign]


def hand_on_as_fetched() -> None:
    """A backlog is handed on in the order in which it was fetched."""
    from stream_scorer.kafka.reader import InputReader

    InputReader._lagging = lambda *_: set()  # type: ignore[method-assign]


def raw_errors() -> None:
    """Errors reach the person as they were raised."""
    from stream_scorer.cli import main as module

    module.main = lambda: module.cli.main(standalone_mode=False)


SABOTAGES: dict[str, Callable[[], None]] = {
    "outputs-outside": outputs_outside_the_transaction,
    "count-duplicates": count_duplicates,
    "drop-bad": drop_bad_records,
    "bend-contributions": bend_contributions,
    "miscount-summaries": miscount_summaries,
    "lose-entries": lose_entries,
    "forget-in-flight": forget_in_flight,
    "unaligned": hand_on_as_fetched,
    "raw-errors": raw_errors,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    SABOTAGES[name]()
    from stream_scorer.cli import main as module

    module.main()
