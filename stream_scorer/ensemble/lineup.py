"""A lineup: the versions in play at one place of the control log, and the members they share.

lineup = Lineup([champion, candidate], split=Split(0.1, "cards:8"))
arm = lineup.route(customer_ids, event_time)      # (n,) int8, index into `records.ARMS`
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput

# Why a member is missing that nobody counts on.
DISABLED = "disabled"
_WHOLE = 1 << 64


@dataclass(frozen=True, slots=True)
class Split:
    """Whom the canary decides for: `share` (0 to 1) of the entities by `salt`, in events before `until` (epoch ms)."""

    share: float
    salt: str
    until: int | None = None


class Panel:
    """The distinct members of several versions: each is asked once a micro-batch, whoever counts on it.

    Attributes:
        keys: see `manifest.member_key`. names: of the members, a second one of a name with its version.
    """

    def __init__(self, versions: Sequence[Ensemble]) -> None:
        self.keys: list[str] = []
        self.names: list[str] = []
        self._who: list[tuple[Ensemble, int]] = []
        self._places: list[list[int]] = []
        for ensemble in versions:
            places = []
            for index, (key, name) in enumerate(zip(ensemble.member_keys, ensemble.member_names, strict=True)):
                if key not in self.keys:
                    self.keys.append(key)
                    self.names.append(f"{name}@{ensemble.version}" if name in self.names else name)
                    self._who.append((ensemble, index))
                places.append(self.keys.index(key))
            self._places.append(places)

    def __len__(self) -> int:
        return len(self.keys)

    def checked(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """As `Ensemble.checked`: all versions take the same features."""
        return self._who[0][0].checked(features)

    def ask(self, index: int, features: NDArray[np.float64]) -> MemberOutput:
        """As `Ensemble.ask`."""
        ensemble, place = self._who[index]
        return ensemble.ask(place, features)

    def answers_of(self, version: int, answers: Sequence[MemberOutput]) -> list[MemberOutput]:
        """Of the panel's answers those that a version counts on, in its manifest's order."""
        return [answers[place] for place in self._places[version]]


@dataclass(frozen=True)
class Lineup:
    """See the module. Immutable: a change is another lineup.

    Attributes:
        versions: the champion, then the canary if there is a split, then those that decide nothing.
        disabled: keys of members that nobody counts on.
        control_offset: the command that made it; None outside live scoring.
    """

    versions: tuple[Ensemble, ...]
    split: Split | None = None
    disabled: frozenset[str] = frozenset()
    control_offset: int | None = None

    @classmethod
    def of(cls, ensemble: Ensemble) -> Lineup:
        """One version that decides everything."""
        return cls((ensemble,))

    @property
    def champion(self) -> Ensemble:
        """The version that decides unless the split says otherwise."""
        return self.versions[0]

    @property
    def deciding(self) -> int:
        """How many of `versions` decide."""
        return 1 if self.split is None else 2

    @cached_property
    def panel(self) -> Panel:
        """The members of all versions."""
        return Panel(self.versions)

    def route(self, entities: Sequence[str | None], event_time: NDArray[np.int64]) -> NDArray[np.int8]:
        """``(n,) int8``: which of `versions` decides each transaction; no entity means the champion."""
        arm = np.zeros(len(event_time), np.int8)
        if self.split is not None:
            bound, start = round(self.split.share * _WHOLE), _keyed(self.split.salt)
            chosen = [entity is not None and place(start, entity) < bound for entity in entities]
            arm[np.array(chosen, np.bool_)] = 1
            if self.split.until is not None:
                arm[event_time >= self.split.until] = 0
        return arm


def _keyed(salt: str) -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=8, key=hashlib.blake2b(salt.encode(), digest_size=32).digest())


def place(keyed: hashlib.blake2b, entity: str) -> int:
    """Where `entity` lies in [0, 2^64), evenly and for ever (BLAKE2b, RFC 7693, keyed with the experiment's salt)."""
    mine = keyed.copy()
    mine.update(entity.encode())
    return int.from_bytes(mine.digest(), "big")
