"""A lineup: the ensemble versions that are active at one offset of the control log, and their shared members.

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

# The reason given for a member that a command has disabled.
DISABLED = "disabled"
_WHOLE = 1 << 64


@dataclass(frozen=True, slots=True)
class Split:
    """The canary decides `share` (0 to 1) of the entities, selected by `salt`, for events before `until` (epoch ms)."""

    share: float
    salt: str
    until: int | None = None


class MemberPool:
    """The distinct members of several versions. Each is called once per micro-batch, however many versions use it.

    Attributes:
        keys: see `manifest.member_key`.
        names: of the members; a further one with the same name has its version as a suffix, or ensemble and version.
    """

    def __init__(self, versions: Sequence[Ensemble]) -> None:
        self.keys: list[str] = []
        self.names: list[str] = []
        self._sources: list[tuple[Ensemble, int]] = []
        self._places: list[list[int]] = []
        for ensemble in versions:
            places = []
            for index, (key, name) in enumerate(zip(ensemble.member_keys, ensemble.member_names, strict=True)):
                if key not in self.keys:
                    self.keys.append(key)
                    version, of_ensemble = f"{name}@{ensemble.version}", f"{name}@{ensemble.name}.{ensemble.version}"
                    self.names.append(next((n for n in (name, version) if n not in self.names), of_ensemble))
                    self._sources.append((ensemble, index))
                places.append(self.keys.index(key))
            self._places.append(places)

    def __len__(self) -> int:
        return len(self.keys)

    def checked(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Ensemble.checked`; all versions take the same features."""
        return self._sources[0][0].checked(features)

    def predict_member(self, index: int, features: NDArray[np.float64]) -> MemberOutput:
        """See `Ensemble.predict_member`."""
        ensemble, place = self._sources[index]
        return ensemble.predict_member(place, features)

    def cannot_hang(self, index: int) -> bool:
        """See `Ensemble.cannot_hang`."""
        ensemble, place = self._sources[index]
        return ensemble.cannot_hang(place)

    def outputs_of(self, version: int, outputs: Sequence[MemberOutput]) -> list[MemberOutput]:
        """The outputs of one version's members, in manifest order, selected from the `outputs` of the whole pool."""
        return [outputs[place] for place in self._places[version]]

    def members_of(self, versions: int) -> frozenset[int]:
        """The indices of the members that the first `versions` use."""
        return frozenset(place for places in self._places[:versions] for place in places)


@dataclass(frozen=True)
class Lineup:
    """See the module. Immutable: a change creates a new lineup.

    Attributes:
        versions: the champion, then the canary if there is a split, then the shadow versions.
        disabled: keys of the disabled members.
        control_offset: the offset of the command that created it; None outside live scoring.
        last_good: index into `versions` of the version that a champion on probation is compared with; None without one.
        withdrawn: index of a version that was rolled back, whose alerted cards are counted for labels; None without it.
    """

    versions: tuple[Ensemble, ...]
    split: Split | None = None
    disabled: frozenset[str] = frozenset()
    control_offset: int | None = None
    last_good: int | None = None
    withdrawn: int | None = None

    @classmethod
    def of(cls, ensemble: Ensemble) -> Lineup:
        """A lineup of one version, which makes every decision."""
        return cls((ensemble,))

    @property
    def champion(self) -> Ensemble:
        """The version that decides every transaction outside the split."""
        return self.versions[0]

    @property
    def deciding(self) -> int:
        """The number of `versions` that make decisions."""
        return 1 if self.split is None else 2

    def compared_with(self, version: int) -> list[int]:
        """The versions whose alerted cards are counted with those of a deciding `version`; all are indices.

        The champion is compared with the last good version or a withdrawn one, and with the canary: the number of cards
        in both arms shows whether the canary gets its share.
        """
        if version:
            return [0]
        paired = [index for index in (self.last_good, self.withdrawn) if index is not None]
        return list(dict.fromkeys([*paired, *range(1, self.deciding)]))

    @cached_property
    def pool(self) -> MemberPool:
        """The members of all versions."""
        return MemberPool(self.versions)

    @cached_property
    def deciding_members(self) -> frozenset[int]:
        """Indices in `pool` of the members of versions that make decisions."""
        return self.pool.members_of(self.deciding)

    def route(self, entities: Sequence[str | None], event_time: NDArray[np.int64]) -> NDArray[np.int8]:
        """``(n,) int8``: index into `versions` of the version that decides; without an entity, the champion."""
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
    """The position of `entity` in [0, 2^64): uniform and stable (BLAKE2b, RFC 7693, keyed with the split's salt)."""
    state = keyed.copy()
    state.update(entity.encode())
    return int.from_bytes(state.digest(), "big")
