"""KV pages for the fake engine: the real `PagePool`, so that forgotten sequences show as leaks."""

from __future__ import annotations

from engine.cache.page_pool import PagePool

PAGE_SIZE = 16


class FakePages:
    """Holds as many pages for each sequence as its tokens need, and lets go of them at its end."""

    def __init__(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages, PAGE_SIZE)
        self._pages: dict[str, list[int]] = {}

    def grow(self, sequence_id: str, num_tokens: int) -> None:
        pages = self._pages.setdefault(sequence_id, [])
        while len(pages) * PAGE_SIZE < num_tokens:
            pages.append(self.pool.acquire())

    def release(self, sequence_id: str) -> None:
        for page_id in self._pages.pop(sequence_id, []):
            self.pool.release(page_id)


def page_metrics(pool: PagePool, *, is_idle: bool) -> dict[str, float]:
    """Return the pages held and, of an idle engine, whether `PagePool.check` stands (0) or not."""
    metrics = {"num_pages_held": float(pool.num_held)}
    if is_idle:
        metrics["num_page_faults"] = float(not any(_is_sound(pool) for _ in range(3)))
    return metrics


def _is_sound(pool: PagePool) -> bool:
    """Look once: the engine's thread may be at work again, so that one bad look says nothing."""
    try:
        pool.check()
    except AssertionError:
        return False
    return True
