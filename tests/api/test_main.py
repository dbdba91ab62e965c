"""The API's own process."""

from __future__ import annotations

import gc

from api.__main__ import GC_THRESHOLD, _spare_the_collector


def test_the_collector_leaves_alone_what_is_loaded() -> None:
    before = gc.get_threshold()
    try:
        _spare_the_collector()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == (GC_THRESHOLD, *before[1:])
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
