"""Loss curves: what a log says, also one that a kill has torn, appears as a picture."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
from matplotlib.image import imread

from engine.training import plot
from engine.training.plot import draw, draw_stage, read_log, smooth
from engine.training.presets import ROW_LENGTHS


def line(step: int, loss: float, steps: int = 100) -> str:
    entry = {"step": step, "tokens": 64 * step, "elapsed_s": 0.5 * step}
    return json.dumps({**entry, "loss": loss, "share": step / steps}) + "\n"


def write_log(folder: Path, steps: int = 100) -> Path:
    folder.mkdir()
    lines = [line(s, 2 + 3 * math.exp(-s / 30) + 0.1 * (s % 2)) for s in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("".join(lines), "utf-8")
    return folder


def colours(png: Path) -> int:
    """How many pixels are neither white nor a shade of gray: the curves."""
    pixels = imread(png)[..., :3]
    return int((pixels.max(-1) - pixels.min(-1) > 0.2).sum())


def test_a_run_becomes_a_picture_with_its_row_lengths_marked(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "verifier")
    draw_stage(folder)
    height, width, _ = imread(folder / "loss.png").shape
    assert height > 400 < width
    assert colours(folder / "loss.png") > 1000
    plain = (folder / "loss.png").read_bytes()
    draw_stage(folder, ROW_LENGTHS)
    assert (folder / "loss.png").read_bytes() != plain


def test_runs_side_by_side_are_curves_of_their_own(tmp_path: Path) -> None:
    first, second = write_log(tmp_path / "a"), write_log(tmp_path / "b", steps=50)
    alone, both = tmp_path / "alone.png", tmp_path / "both.png"
    plot.main([str(first), "--out", str(alone)])
    plot.main([str(first), str(second / "log.jsonl"), "--out", str(both)])
    assert colours(both) > colours(alone)


def test_a_torn_log_is_read_and_steps_made_twice_count_once(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "killed", steps=6)
    log = folder / "log.jsonl"
    torn = log.read_text("utf-8")[:-20]
    # Killed in step 6, resumed from a checkpoint of step 3: the new step 4 ends half a line.
    log.write_text(torn + "".join(line(s, s + 0.5) for s in range(4, 8)), "utf-8")
    curve = read_log(log)
    assert curve.tokens == [64 * s for s in (1, 2, 3, 4, 5, 6, 7)]
    assert curve.losses[4:] == [5.5, 6.5, 7.5]
    log.write_text(torn, "utf-8")
    assert len(read_log(log).losses) == 5
    draw_stage(folder)
    assert colours(folder / "loss.png") > 1000


def test_the_smoothed_curve_keeps_a_level_and_calms_a_jitter() -> None:
    assert smooth([2.0] * 10) == pytest.approx([2.0] * 10)
    jitter = smooth([1.0, 3.0] * 200)
    assert max(jitter[50:]) - min(jitter[50:]) < 0.5


@pytest.mark.parametrize("content", [None, "", "not a log\n"])
def test_nothing_logged_is_said_and_stops_no_training(
    content: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    if content is not None:
        (folder / "log.jsonl").write_text(content, "utf-8")
    draw_stage(folder)
    assert "loss.png" in caplog.text
    assert not (folder / "loss.png").exists()
    with pytest.raises(SystemExit):
        plot.main([str(folder), "--out", str(folder / "x.png")])
    assert "log.jsonl" in capsys.readouterr().err


def test_without_matplotlib_the_message_names_the_extra(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_log(tmp_path / "verifier")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    draw_stage(folder)
    assert "pip install 'dfastllm[training]'" in caplog.text
    with pytest.raises(plot.DrawingError, match="matplotlib"):
        draw({"x": folder / "log.jsonl"}, tmp_path / "x.png")
