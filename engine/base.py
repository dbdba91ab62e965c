"""Shapes that every part of the engine shares: statistics that can be read and reset."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class HasStats(Protocol):
    """Anything that counts what it does."""

    def get_stats(self) -> dict[str, Any]: ...
    def reset_stats(self) -> None: ...


@dataclass
class BaseStats:
    """Counts of events; ratios are properties of the subclass, so nothing can go stale."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def reset(self) -> None:
        """Put every field back to its default."""
        fresh = type(self)()
        for field in fields(self):
            setattr(self, field.name, getattr(fresh, field.name))
