"""Alerted cards of two versions in one micro-batch: what the verdict on a version counts (ADR 0030)."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from stream_scorer.arrays import Bools, Ints
from stream_scorer.ensemble.lineup import DISABLED, Lineup
from stream_scorer.pipeline.batch import BatchDecisions, MicroBatch
from stream_scorer.records import CardAlerts
from stream_scorer.spec.model import CheckedSpec

Rows = Ints | slice
# Event times are below this.
_NEVER = np.iinfo(np.int64).max


class CardCounter:
    """Lists the alerted cards of pairs of versions, by source partition."""

    def __init__(self, checked: CheckedSpec) -> None:
        self._checked = checked
        self._pseudonyms = checked.pseudonyms

    def count(self, batch: MicroBatch, version: int, chosen: Rows) -> dict[int, dict[str, CardAlerts]]:
        """By span of the batch and by the other version: the cards among the `chosen` transactions.

        `version` is the index into the lineup of the version that decided them.
        """
        decided = batch.decided
        assert decided is not None
        out: dict[int, dict[str, CardAlerts]] = {}
        for other in decided.lineup.compared_with(version):
            name = decided.lineup.versions[other].version
            for span, cards in self._pair(batch, version, other, chosen).items():
                out.setdefault(span, {})[name] = cards
        return out

    def _pair(self, batch: MicroBatch, version: int, other: int, chosen: Rows) -> dict[int, CardAlerts]:
        events, decided = batch.events, batch.decided
        assert events is not None and decided is not None
        ids = entity_ids(batch, self._checked)
        mine, theirs = decided.results[version], decided.results[other]
        counts = evidence_rows(batch, ids, version, other)[chosen]
        span_of, event_time = events.transaction_span[chosen], events.transactions.event_time[chosen]
        this, those = mine.decision[chosen] > 0, theirs.decision[chosen] > 0
        alerted = np.flatnonzero(counts & (this | those))
        place = np.arange(len(ids))[chosen][alerted]
        start = self._pseudonyms.short_hash(pair_name(decided.lineup, version, other))
        hashes = np.zeros(len(alerted), dtype=np.uint64)
        for row, index in enumerate(place.tolist()):
            state = start.copy()
            state.update((ids[index] or "").encode())
            hashes[row] = int.from_bytes(state.digest(), "big")
        rows = np.bincount(span_of[counts], minlength=len(batch.spans))
        excluded = np.bincount(span_of[~counts], minlength=len(batch.spans))
        out = {}
        for span in np.flatnonzero(rows + excluded).tolist():
            mask = span_of[alerted] == span
            here = alerted[mask]
            cards, card_of = np.unique(hashes[mask], return_inverse=True)
            mine_at, theirs_at = (_first(card_of, len(cards), event_time[here], flag[here]) for flag in (this, those))
            names = [f"{card:016x}" for card in cards.tolist()]
            square = _square(int(rows[span]), this[here], those[here])
            found = CardAlerts(int(rows[span]), int(excluded[span]), names, mine_at, theirs_at, against=square)
            if version or other in (decided.lineup.last_good, decided.lineup.withdrawn):
                found = _with_events(found, batch, place[mask], card_of)
            out[span] = found
        return out


def entity_ids(batch: MicroBatch, checked: CheckedSpec) -> list[str | None]:
    """The card of each transaction; the transaction itself if the spec has no entities."""
    assert batch.events is not None
    transactions, entity = batch.events.transactions, checked.spec.partition_entity
    return list(transactions.event_id) if entity is None else transactions.entity_ids[entity]


def evidence_rows(batch: MicroBatch, ids: list[str | None], version: int, other: int) -> Bools:
    """``(n,) bool``: the transactions of the batch that count in a comparison of two versions; see `CardAlerts`.

    `version` and `other` are indices into the lineup.
    """
    enriched, decided = batch.enriched, batch.decided
    assert enriched is not None and decided is not None
    counts = ~enriched.duplicate
    # A member that a command disabled in both versions leaves them comparable. If it is another one in each version, or
    # is disabled in one only, the scores do not show how the change of this member decides.
    if enriched.degraded or _disabled(decided, version) != _disabled(decided, other):
        counts = np.zeros_like(counts)
    if None in ids:
        counts &= np.array([card is not None for card in ids], dtype=np.bool_)
    if decided.rules is not None:
        counts &= decided.rules.listed < 0
    for scored in (decided.results[version].scored, decided.results[other].scored):
        counts &= ~np.isnan(scored.score)
        if any(reason != DISABLED for reason in scored.failures.values()):
            counts &= ~np.isnan(scored.member_scores).any(axis=1)
    return counts


def _disabled(decided: BatchDecisions, version: int) -> set[str]:
    """Keys of the members that a command excluded from the scores of a version."""
    ensemble, failures = decided.lineup.versions[version], decided.results[version].scored.failures
    members = zip(ensemble.member_keys, ensemble.member_names, strict=True)
    return {key for key, name in members if failures.get(name) == DISABLED}


def pair_name(lineup: Lineup, version: int, other: int) -> str:
    """The name of a pair of versions: the same from both sides."""
    both = sorted(f"{lineup.versions[index].version} {lineup.versions[index].digest}" for index in (version, other))
    return "\n".join(("cards", lineup.versions[version].name, *both))


def _with_events(cards: CardAlerts, batch: MicroBatch, places: Ints, card_of: NDArray[np.intp]) -> CardAlerts:
    """`cards` with the first alert of each card.

    `places` ``(n,)`` are the alerts in the batch, `card_of` ``(n,)`` their cards.
    """
    assert batch.events is not None
    transactions = batch.events.transactions
    order = np.lexsort((transactions.event_time[places], card_of))
    firsts = places[order[np.unique(card_of[order], return_index=True)[1]]].tolist()
    return replace(
        cards,
        event=[transactions.event_id[row] for row in firsts],
        value=transactions.value[firsts].tolist(),
    )


def _square(rows: int, this: Bools, other: Bools) -> list[int]:
    """2x2 counts of `rows` transactions, of which those that either version alerts are ``(n,)``."""
    both = int((this & other).sum())
    return [both, int(this.sum()) - both, int(other.sum()) - both, rows - len(this)]


def _first(card_of: NDArray[np.intp], cards: int, event_time: Ints, alert: Bools) -> list[int | None]:
    """Per card the event time of its first alert; None without one."""
    first = np.full(cards, _NEVER)
    np.minimum.at(first, card_of[alert], event_time[alert])
    return [None if time == _NEVER else time for time in first.tolist()]
