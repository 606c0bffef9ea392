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


SABOTAGES: dict[str, Callable[[], None]] = {
    "outputs-outside": outputs_outside_the_transaction,
    "count-duplicates": count_duplicates,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    SABOTAGES[name]()
    from stream_scorer.cli.main import main

    main()
