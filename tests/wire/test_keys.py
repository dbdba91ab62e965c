"""Names in Redis."""

from __future__ import annotations

import pytest

from worker.wire import keys


def test_a_models_queues_come_most_urgent_first() -> None:
    assert keys.queue_names("tiny") == ("tiny.interactive", "tiny.default", "tiny.batch")


def test_a_models_name_cannot_break_rqs_lists_or_a_dashboards_url() -> None:
    name = keys.queue_name("org/a model, {v2}", "batch")
    assert not set(name) & set("/, {}%:?#&")
    assert name.endswith(".batch")


def test_different_models_have_different_queues() -> None:
    models = ["a/b", "a~2fb", "a-b", "a_b", "a.b", "a b", "a//b", "ä", "a"]
    assert len({keys.queue_name(model) for model in models}) == len(models)


def test_an_unknown_priority_is_refused() -> None:
    with pytest.raises(ValueError, match="interactive, default, batch"):
        keys.queue_name("tiny", "urgent")
