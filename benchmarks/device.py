"""Table `device`: an 8B-shaped verifier with random weights against the device's own bandwidth.

Of a model of this size a decode step is bound by reading its weights, so what counts is how near it
comes to the time in which the device copies as many bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.options import Options
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle
from engine.build import EMBEDDED, assemble_engine, resolve
from engine.dfastllm_engine import DFastLLMEngine
from engine.engine_config import DTYPES, EngineConfig
from engine.models.attention import PAGED_ATTENTION
from engine.models.causal_lm import CausalLM
from engine.models.compiled import CompilerMissingError, check_compiler
from engine.models.loader import Models
from engine.models.packing import Span
from engine.request.sampling_params import SamplingParams
from engine.request.tokenizer import Tokenizer

SHAPE_8B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
"""Of Qwen3-8B: its `config.json` at https://huggingface.co/Qwen/Qwen3-8B."""
SCALED_DOWN: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
"""For smoke runs, wherever they run."""
CONTEXT = 512
VERIFY_ROWS = 16
COLUMNS = ("figure", "ms", "x", "of", "aim")
AIMS = {"copy": 1.25, "one row": 1.2}
_NOTES = (
    f"Random weights (bf16 on CUDA), {CONTEXT} tokens of context, one sequence. `forward of n "
    "rows`: the packed forward with its logits, until they are there, of 20 in a row the median; "
    "`engine's decode step`: scheduling, forward, sampling, commit; of each the median over "
    "interleaved rounds.",
    "`copying the weights' bytes`: weight bytes by the measured bandwidth of a copy on the device, "
    "read and written bytes both counted; embeddings of tokens that are not read are no weights "
    "here.",
)
GRAPHS = "with CUDA graphs"
NOT_HERE = "no such device at hand"


def run(options: Options) -> Table:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    title = "An 8B-shaped verifier against the device's memory bandwidth"
    if device.type != "cuda" and not options.quick:
        note = "These figures need a CUDA device. `--quick` runs the same code, scaled down."
        return Table("device", title, COLUMNS, [[NOT_HERE, *"----"]], (note, *_NOTES))
    bench = DeviceBench(device, scaled_down=options.quick)
    samples = interleave(bench.cases, options.num_rounds)
    rows = _rows({name: middle(own, "ms") for name, own in samples.items()}, bench)
    bars = {str(row[0]): {"ms": float(row[1])} for row in rows}
    notes = (bench.words, *_NOTES)
    return Table("device", title, COLUMNS, rows, notes, samples, Chart("ms", bars))


class DeviceBench:
    """A model that exists nowhere else, in an engine like any other."""

    def __init__(self, device: torch.device, *, scaled_down: bool) -> None:
        self._device = device
        self._compilation = compilation(device)
        shape = SCALED_DOWN if scaled_down else SHAPE_8B
        self._engine = random_engine(device, shape, compiled=self._compilation == GRAPHS)
        self._num_times = 3 if scaled_down else 20
        self._copied = torch.empty(2**24 if scaled_down else 2**31, dtype=torch.uint8).to(device)
        self._copy = torch.empty_like(self._copied)
        self.weight_bytes = read_bytes(self._engine._runner.verifier)

    @property
    def words(self) -> str:
        size = self.weight_bytes / 1e9
        return f"{size:.3g} GB of weights are read in a forward; {self._compilation}."

    @property
    def cases(self) -> dict[str, Callable[[int], Sample]]:
        forward = partial(self._forward_ms, rows=1)
        return {
            "copy": lambda number: {"ms": self._copy_ms()},
            "one row": lambda number: {"ms": forward()},
            "rows": lambda number: {"ms": self._forward_ms(rows=VERIFY_ROWS)},
            "step": lambda number: {"ms": self._step_ms()},
        }

    def _copy_ms(self) -> float:
        """In which the device moves as many bytes as the weights have, half of them read."""

        def copy() -> None:
            self._copy.copy_(self._copied)
            self._wait()

        moved = 2 * self._copied.nbytes
        return self._median_ms(copy) * self.weight_bytes / moved

    def _forward_ms(self, rows: int) -> float:
        runner = self._engine._runner
        pages = list(range(1, 2 - -(CONTEXT + rows) // runner.page_size))
        span, wanted = Span([5] * rows, CONTEXT, pages), list(range(rows))
        return self._median_ms(lambda: runner.verify([span], wanted).max().item())

    def _step_ms(self) -> float:
        """Of the steps that decode one sequence."""
        params = SamplingParams(temperature=0.0, ignore_eos=True)
        sequence = self._engine.make_sequence("0", [5] * CONTEXT, params, mode="ar")
        self._engine.add(sequence)
        while sequence.num_output_tokens == 0:
            self._engine.step()
        elapsed = self._median_ms(self._engine.step)
        self._engine.abort("0")
        return elapsed

    def _median_ms(self, action: Callable[[], object]) -> float:
        times = []
        action()
        for _ in range(self._num_times):
            started = time.perf_counter()
            action()
            times.append(time.perf_counter() - started)
        return 1e3 * sorted(times)[len(times) // 2]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def compilation(device: torch.device) -> str:
    """How forwards run here, in words."""
    if device.type != "cuda":
        return "eager"
    try:
        check_compiler(device)
    except CompilerMissingError as error:
        return f"eager, for {error}"
    return GRAPHS


def random_engine(device: torch.device, shape: dict[str, Any], *, compiled: bool) -> DFastLLMEngine:
    """An engine around a Qwen3 of this shape, whose weights are drawn on the device itself."""
    config = resolve(
        EngineConfig(
            device=device.type,
            max_model_len=2 * CONTEXT,
            prefix_cache=False,
            compile=compiled,
            self_test=False,  # what random weights say in bf16 differs in more than rounding
        )
    )
    dtype = DTYPES[config.dtype]
    assert dtype is not None
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            Qwen3Config(**shape), dtype=dtype, attn_implementation=PAGED_ATTENTION
        )
    models = Models(CausalLM(model.eval()), None, None)
    config = replace(config, drafter_path=None, diffusion_path=None)
    return assemble_engine(config, models, Tokenizer(EMBEDDED / "verifier"))


def read_bytes(verifier: CausalLM) -> int:
    """Bytes of weights that a forward of one row must read: all but the other rows' embeddings."""
    model = verifier.model
    total = sum(p.nbytes for p in model.parameters())
    embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
    is_tied = model.get_output_embeddings().weight is embeddings  # type: ignore[operator]
    return total if is_tied else total - int(embeddings.nbytes)


def _rows(ms: dict[str, float], bench: DeviceBench) -> list[list[Cell]]:
    """Name, ms, times what, the aim."""
    copying = "copying the weights' bytes"
    one, many = "forward of 1 row", f"forward of {VERIFY_ROWS} rows"
    return [
        [copying, ms["copy"], 1.0, "-", "-"],
        [one, ms["one row"], ms["one row"] / ms["copy"], copying, f"{AIMS['copy']:g}"],
        [many, ms["rows"], ms["rows"] / ms["one row"], one, f"{AIMS['one row']:g}"],
        ["engine's decode step", ms["step"], ms["step"] / ms["copy"], copying, f"{AIMS['copy']:g}"],
    ]
