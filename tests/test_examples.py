"""The examples, and the code printed in the documents, run as they stand."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.server import RunningServer, served

ROOT = Path(__file__).parent.parent
LIMIT_S = 150
FACES = ("HybridEngine", "SpecDiffEngine", "SemiAREngine", "APDDecoder")
# What follows repeats what stands here, whichever small model goes on with it.
PROMPT = "| a | b |\n| --- | --- |\n" + 3 * "| 1 | 2 |\n" + "| 1 |"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with served() as running:
        yield running


def test_the_chat_example_streams_an_answer_from_a_served_model(server: RunningServer) -> None:
    answer, _, usage = _run("stream_chat.py", f"{server.url}/v1").strip().rpartition("\n")
    assert answer.strip()
    assert int(usage.removeprefix("(").removesuffix(" tokens)")) > 0


def test_the_readme_asks_a_served_model_and_prints_its_answers(server: RunningServer) -> None:
    (code,) = _blocks(ROOT / "README.md")
    assert "http://127.0.0.1:8080/v1" in code, "the address of `make serve`"
    answer, *_ = _python("-c", code.replace("http://127.0.0.1:8080", server.url)).split("\n")
    assert answer.strip()


def test_the_offline_example_continues_each_of_its_prompts() -> None:
    blocks = _run("offline_generate.py").strip().split("\n\n")
    assert len([block for block in blocks if block.partition("|")[2].strip()]) == 2


IN_THIS_PROCESS = {  # what each must print, beside texts that nobody can foretell
    "continuous_batching.py": [*(rf"(?m)^{mode}: '.*(stop|length)$" for mode in ("ar", "deer"))],
    "diffusion_sampler.py": [r"num_steps=2, .*: \[1, 0, 1, 0\]", r"threshold=0\.9, .*: ' \w+ "],
    "entropy_adaptive.py": [r"(?m)^spec_diff, EntropyAdvice\(denoising_steps=3.*: '.+'$"],
    "entropy_cut_drafts.py": [r"\| \w+ ", r"num_accepted_tokens: \d", "num_cut_tokens: "],
    "fill_in.py": [r"\[.+\] named Max\. Max liked to \[.+\] all day\."],
    "hybrid_engine.py": [rf"(?m)^{kind}: .*Max\.\| \w+" for kind in FACES],
}


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_an_example_without_a_server_does_what_it_says(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in a process of its own: importing torch takes longer than the examples do."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(ROOT / "examples" / name))
    finally:
        torch.set_num_threads(num_threads)
    printed = capsys.readouterr().out
    for pattern in IN_THIS_PROCESS[name]:
        assert re.search(pattern, printed), printed


def test_no_example_is_left_out_or_too_long() -> None:
    paths = list((ROOT / "examples").glob("*.py"))
    tested = {*IN_THIS_PROCESS, "offline_generate.py", "stream_chat.py"}
    assert {path.name for path in paths} == tested
    assert max(len(path.read_text("utf-8").splitlines()) for path in paths) <= 35


def test_a_strategy_of_another_package_is_installed_and_gives_the_tokens_of_ar_in_fewer_steps(
    tmp_path: Path,
) -> None:
    package = tmp_path / "custom_strategy"  # a build leaves files behind
    shutil.copytree(ROOT / "examples" / "custom_strategy", package)
    install = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation")
    site = tmp_path / "site"
    _python(*install, "--target", str(site), str(package))
    told = json.loads(_python("-c", COPY_AHEAD, PROMPT, path=site))
    assert "copy_ahead" in told["modes"]
    assert told["copy_ahead"]["text"] == told["ar"]["text"]
    assert told["copy_ahead"]["steps"] < told["ar"]["steps"]


COPY_AHEAD = """
import json, sys
from engine.build import EngineConfig, build_engine
from engine.request.sampling_params import SamplingParams

engine = build_engine(EngineConfig(self_test=False))
told = {"modes": engine.modes}
for mode in ("ar", "copy_ahead"):
    engine.reset_stats()
    params = SamplingParams(max_tokens=48, temperature=0.0, ignore_eos=True)
    (text,) = engine.generate(sys.argv[1:], params, mode=mode)
    told[mode] = {"text": text, "steps": engine.metrics()["num_steps"]}
print(json.dumps(told))
"""


def _blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def _run(name: str, *args: str) -> str:
    return _python(str(ROOT / "examples" / name), *args)


def _python(*args: str, path: Path | None = None) -> str:
    """Run in a process of its own, as a reader would, and return what it prints."""
    # One thread: several that spin while they wait stand still where tests share the cores.
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environ["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
