"""Workers: objects whose methods run in this process, one after another, or elsewhere at the same time.

The computation is written once for this interface. `ray_workers` has the implementation on Ray.
"""

from __future__ import annotations

from typing import Any, Protocol


class Actor(Protocol):
    """An object that lives with a worker. Its calls run one after another, in the order in which they are made."""

    def call(self, method: str, *arguments: Any, returns: int = 1) -> list[Any]:
        """Call `method`; return one handle for each of its results, which are a tuple unless `returns` is 1.

        A handle as an argument is replaced by its value before the call.
        """
        ...


class Workers(Protocol):
    """Where actors live.

    Attributes:
        count: how many actors of a kind are useful.
    """

    count: int

    def start(self, kind: type[Any], *arguments: Any, cores: int = 1) -> Actor:
        """A new ``kind(*arguments)``, which occupies `cores`."""
        ...

    def put(self, value: Any) -> Any:
        """A handle of `value`, to be given to many calls."""
        ...

    def get(self, handle: Any) -> Any:
        """The value of a handle, waiting for it. An error of the call that makes it is raised here."""
        ...
