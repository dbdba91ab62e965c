"""Results: readable, complete, never silently better than they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.options import Options
from benchmarks.results import Chart, Table, markdown, shown, write
from benchmarks.rounds import interleave, middle, percentile, ratio

HEADER = {
    "command": "python -m benchmarks it",
    "time": "2026-01-01T00:00:00+00:00",
    "commit": "abc",
    "device": "a machine",
    "cores": 2,
    "threads": 2,
    "wait_policy": "passive",
    "load_average": 0.25,
    "is_smoke_run": False,
}
TABLE = Table(
    "it",
    "How fast it is",
    ("mode", "tokens/s"),
    [["ar", 100.0], ["deer", float("nan")]],
    ("a note",),
    {"ar": [{"tokens_s": 100.0}, {"tokens_s": float("nan")}]},
    Chart("tokens/s", {"one": {"ar": 100.0, "deer": 150.0}}),
)


def test_the_page_names_command_device_and_commit_and_holds_every_row() -> None:
    page = markdown(TABLE, HEADER)
    for words in ("python -m benchmarks it", "a machine", "commit abc", "a note"):
        assert words in page
    assert "| ar | 100 |" in page
    assert "| deer | - |" in page, "a figure that is not there is no figure"


def test_a_smoke_run_says_so_and_goes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    assert "mean nothing" in markdown(TABLE, {**HEADER, "is_smoke_run": True})
    assert "mean nothing" not in markdown(TABLE, HEADER)
    assert Options(quick=True, out=tmp_path).folder != Options(out=tmp_path).folder


def test_the_json_keeps_every_sample_and_is_json_even_without_a_figure(tmp_path: Path) -> None:
    paths = write(TABLE, HEADER, tmp_path)
    assert paths[0].read_text("utf-8") == markdown(TABLE, HEADER)
    read = json.loads(paths[1].read_text("utf-8"), parse_constant=pytest.fail)
    assert read["environment"]["commit"] == "abc"
    assert read["samples"]["ar"] == [{"tokens_s": 100.0}, {"tokens_s": None}]


def test_a_picture_is_drawn_where_matplotlib_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = write(TABLE, HEADER, tmp_path)
    assert paths[2].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("figure", "words"),
    [(1234.5, "1234"), (56.78, "56.8"), (1.234, "1.23"), (0.01234, "0.0123"), (7, "7"), ("x", "x")],
)
def test_figures_are_shown_with_the_digits_that_count(figure: str | float, words: str) -> None:
    assert shown(figure) == words


def test_cases_take_turns_after_one_warm_up_each() -> None:
    calls: list[tuple[str, int]] = []

    def case(name: str, number: int) -> dict[str, float]:
        calls.append((name, number))
        return {"x": float(number)}

    samples = interleave({"a": lambda n: case("a", n), "b": lambda n: case("b", n)}, rounds=2)
    assert calls == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert samples["a"] == [{"x": 0.0}, {"x": 1.0}]


def test_a_ratio_is_taken_within_each_round() -> None:
    base = [{"x": 1.0}, {"x": 10.0}, {"x": 100.0}]
    ours = [{"x": 2.0}, {"x": 20.0}, {"x": 200.0}]
    assert ratio(ours, base, "x") == 2.0
    assert middle(ours, "x") == 20.0


def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed() -> None:
    assert percentile(range(1, 21), 0.95) == 19
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([5.0], 0.99) == 5.0
    assert percentile([], 0.5) != percentile([], 0.5), "of nothing, no figure"
