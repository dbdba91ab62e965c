"""When a prefix is worth fetching, and how long to wait for it, by what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from engine.cache.page_store import StoreCosts

_MEMORY = 0.8
"""Weight of what was known at each new measurement."""


@dataclass
class FetchRule:
    """Weighs what a store takes against what computing the same tokens takes.

    A look that finds nothing costs at most `max_look_share` of the computing, and one for which the
    store lets us wait, or a fetch that does not come to its end, at most `max_wait_share` of it.
    """

    page_size: int
    token_s: float
    """Seconds in which a prompt's token is read, as measured lately."""
    max_look_share: float = 0.1
    max_wait_share: float = 0.5

    def note_prefill(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step that has read so many tokens of prompts, and little else."""
        self.token_s = _MEMORY * self.token_s + (1 - _MEMORY) * seconds / num_tokens

    def computing_s(self, num_pages: int) -> float:
        return num_pages * self.page_size * self.token_s

    def is_worth_looking(self, num_tokens: int, costs: StoreCosts | None) -> bool:
        """Whether a prefix of so many tokens is worth a round trip, and then its pages theirs."""
        if costs is None:
            return False
        num_pages = num_tokens // self.page_size
        is_faster = costs.page_s < self.max_wait_share * self.computing_s(1)
        return is_faster and costs.lookup_s < self.max_look_share * self.computing_s(num_pages)

    def patience_s(self, num_pages: int, num_found: int | None) -> float:
        """How long a sequence may wait for pages; before the store has looked, for all of them."""
        return self.max_wait_share * self.computing_s(num_pages if num_found is None else num_found)
