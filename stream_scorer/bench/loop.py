"""The per-event loop of common tutorials, on the same broker, Redis, transactions and members."""

from __future__ import annotations

import json

from stream_scorer.bench.drain import PREFIX
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.bench.processes import Bench, program
from stream_scorer.bench.results import Loop
from stream_scorer.errors import StreamScorerError
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.spec import load_spec

OUTPUT_TOPIC = PREFIX + "tutorial-scores"
# Added to the loop's own limit: importing libraries, joining the group, finishing the current event.
_MARGIN_S = 60.0


def run_loop(bench: Bench) -> Loop:
    """Run the loop until one of its limits. Raises `StreamScorerError` if it fails or scores nothing."""
    config = bench.config
    TopicAdmin(bench.bootstrap).create([OUTPUT_TOPIC], config.partitions)
    entities = {name: entity.field for name, entity in load_spec(CARDS_SPEC).spec.entities.items()}
    arguments = {
        "bootstrap": bench.bootstrap,
        "redis": bench.stack.addresses.redis,
        "topic": Topics(PREFIX).transactions,
        "out": OUTPUT_TOPIC,
        "ensemble": str(bench.ensemble.resolve()),
        "entities": entities,
        "events": config.loop_events,
        "seconds": config.loop_s,
    }
    path = bench.folder / "loop.json"
    path.write_text(json.dumps(arguments))
    with program("tutorial_loop", path) as loop:
        found = loop.result(config.loop_s + _MARGIN_S)
    if found["events"] < 1:
        raise StreamScorerError("the per-event loop scored nothing")
    result = Loop(found["events"], round(found["seconds"], 3), round(found["events"] / found["seconds"], 1))
    bench.progress(f"per-event loop: {result.per_second:,.1f} transactions per second")
    return result
