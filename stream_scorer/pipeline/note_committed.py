"""Notes which offsets the group has scored: recovery and a catch-up start from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.positions import Span


class NoteCommitted:
    """The stage behind commit and apply. `note` takes the spans of a scored batch (`StateManager.note_committed`)."""

    name = "note"
    scoring_only = True

    def __init__(self, note: Callable[[Sequence[Span]], None]) -> None:
        self._note = note

    def process(self, batch: MicroBatch) -> None:
        """Note the spans of the batch."""
        self._note(batch.spans)
