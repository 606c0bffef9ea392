"""Figures by card: precision of the highest cards of each day, and the time to the first detection of a fraud case."""

from __future__ import annotations

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.evaluation.result import CardPrecision, Detection

DAY_MS = 86_400_000


class DailyCards:
    """Card precision at k per day, for several scores of the same transactions (Handbook, chapter 4).

    As there, a day with fewer than k cards is divided by k. Cards without a score are not among the highest.

    Transactions come in the order of the evaluation. A day is that of the running maximum of event time: a late
    transaction counts on the day on which it arrives, as for the analysts. Memory holds one day.
    """

    def __init__(self, scores: int, ks: list[int]) -> None:
        self._ks = ks
        self._open: list[tuple[Ints, Floats, Bools]] = []
        self._day = -1
        self._known: list[list[set[int]]] = [[set() for _ in ks] for _ in range(scores)]
        self._found: list[list[list[tuple[int, float]]]] = [[[] for _ in ks] for _ in range(scores)]

    def add(self, time: Ints, card: Ints, scores: Floats, fraud: Bools) -> None:
        """Add transactions: running time ``(n,)`` ms, card ``(n,)``, scores ``(n, s)``, fraud ``(n,)``."""
        days = time // DAY_MS
        edges = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
        for low, high in zip(edges, edges[1:], strict=False):
            if low == high:
                continue
            if int(days[low]) != self._day:
                self._close()
                self._day = int(days[low])
            self._open.append((card[low:high], scores[low:high], fraud[low:high]))

    def _close(self) -> None:
        if not self._open:
            return
        card = np.concatenate([part[0] for part in self._open])
        scores = np.concatenate([part[1] for part in self._open])
        fraud = np.concatenate([part[2] for part in self._open])
        self._open = []
        cards, place = np.unique(card, return_inverse=True)
        highest = np.full((len(cards), scores.shape[1]), -np.inf)
        np.maximum.at(highest, place, np.nan_to_num(scores, nan=-np.inf))
        compromised = np.zeros(len(cards), np.bool_)
        compromised[place[fraud]] = True
        for version in range(scores.shape[1]):
            # Ties by card, so that the order of the transactions does not matter.
            order, scored = np.lexsort((cards, -highest[:, version])), highest[:, version] > -np.inf
            for index, k in enumerate(self._ks):
                known = self._known[version][index]
                found = order[: k + len(known)]
                top = [i for i in found[scored[found]].tolist() if int(cards[i]) not in known][:k]
                hits = [i for i in top if compromised[i]]
                known.update(int(cards[i]) for i in hits)
                self._found[version][index].append((self._day * DAY_MS, len(hits) / k))

    def result(self, version: int) -> list[CardPrecision]:
        """Per k, the figures of one score; call it after everything was added."""
        self._close()
        out = []
        for k, days in zip(self._ks, self._found[version], strict=True):
            mean = float(np.mean([precision for _, precision in days])) if days else None
            out.append(CardPrecision(k, len(days), mean, days))
        return out


def detection(card: Ints, event_time: Ints, value: Ints, alert: Bools, gap_days: int) -> Detection:
    """The fraud cases of frauds ``(n,)``, see `Detection`."""
    order = np.lexsort((event_time, card))
    card, event_time, value, alert = card[order], event_time[order], value[order], alert[order]
    n = len(card)
    if not n:
        return Detection(gap_days, 0, 0, 0, None, None, None, 0)
    begins = np.ones(n, np.bool_)
    begins[1:] = (card[1:] != card[:-1]) | (np.diff(event_time) >= gap_days * DAY_MS)
    case = np.cumsum(begins) - 1
    start = np.flatnonzero(begins)
    first = np.full(len(start), n, np.int64)
    hits = np.flatnonzero(alert)
    np.minimum.at(first, case[hits], hits)
    found = first < n
    stop = np.where(found, first, np.append(start[1:], n))
    sums = np.concatenate([[0], np.cumsum(value)])
    waited = event_time[first[found]] - event_time[start[found]]
    median, p90 = (float(x) for x in np.quantile(waited, [0.5, 0.9])) if len(waited) else (None, None)
    before = (first - start)[found]
    return Detection(
        gap_days=gap_days,
        cases=len(start),
        detected=int(found.sum()),
        at_first=int((before == 0).sum()),
        median_ms=median,
        p90_ms=p90,
        frauds_before=float(before.mean()) if len(before) else None,
        value_before=int((sums[stop] - sums[start]).sum()),
    )
