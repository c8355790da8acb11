"""The low-rank adapters that requests may name, each with the scale it has where they name none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from phlite.errors import RequestError
from phlite.layers.lora import Adapter

__all__ = ["AdapterUse", "LoadedAdapters"]


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter and the scale of what it adds."""

    adapter: Adapter
    scale: float


class LoadedAdapters:
    """Adapters by name. Readers in other threads see either what was before a change or what is after it."""

    def __init__(self) -> None:
        self.uses: Mapping[str, AdapterUse] = {}

    def add(self, adapter: Adapter, scale: float) -> None:
        """Make an adapter known; raises RequestError where its name is taken."""
        if adapter.name in self.uses:
            raise RequestError(f"lora: an adapter named {adapter.name!r} is loaded already; give this one another name")
        self.uses = {**self.uses, adapter.name: AdapterUse(adapter, scale)}

    def remove(self, name: str) -> None:
        """Forget an adapter; sequences that use it go on with it. raises: RequestError for an unknown name."""
        check_known(name, self.uses)
        self.uses = {known: use for known, use in self.uses.items() if known != name}

    def chosen(self, scales: Mapping[str, float] | None) -> tuple[AdapterUse, ...]:
        """Return the adapters of a request in the order of their names, without those of scale 0.

        scales: by name; None: every adapter with the scale it was loaded with
        raises: RequestError for an unknown name
        """
        uses = self.uses
        for name in scales or ():
            check_known(name, uses)
        chosen = uses if scales is None else {name: AdapterUse(uses[name].adapter, scales[name]) for name in scales}
        return tuple(use for _, use in sorted(chosen.items()) if use.scale)


def check_known(name: str, uses: Mapping[str, AdapterUse]) -> None:
    """Raise RequestError unless an adapter of this name is among those loaded."""
    if name not in uses:
        raise RequestError(f"lora: no adapter {name!r} is loaded; loaded: {', '.join(sorted(uses)) or 'none'}")
