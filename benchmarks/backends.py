"""Table `backends`: one verifier forward by operators, kernels, compiled, 8 bits, attention."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.configured import configured
from benchmarks.lanes import encoded
from benchmarks.options import Options
from benchmarks.prompts import prompts
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, ratio
from engine.build import EngineConfig, build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.models.attention_choice import AttentionUnavailableError
from engine.models.compiled import CompilerMissingError
from engine.models.flash_kernels import FLASH_KINDS
from engine.models.packing import Span

CASES = ((1, 1), (1, 4), (4, 1), (4, 4), (16, 1), (16, 4))
"""Sequences, and rows of each: 1 decodes, 4 verify a draft of three."""
CONTEXT = 200
NUM_TEXTS, TEXT_TOKENS = 18, 64
KERNELS = "CPU kernels"
COLUMNS = (
    "variant", *(f"{n} x {rows} ms" for n, rows in CASES), "x plain at 1 x 1", "x plain at 16 x 4",
    "logit error", "perplexity", "same greedy", "start s",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A name, and how its engine differs from the plain one."""

    name: str
    changes: dict[str, object]


def variants() -> Iterator[Variant]:
    yield Variant("plain", {"attention": "sdpa", "cpu_kernels": False})
    yield Variant(KERNELS, {"attention": "sdpa"})
    yield Variant("compiled", {"attention": "sdpa", "compile": True})
    yield Variant("8 bits", {"attention": "sdpa", "use_8bit": True})
    both = {"attention": "sdpa", "compile": True, "use_8bit": True}
    yield Variant("compiled, 8 bits", both)
    for name in FLASH_KINDS:
        yield Variant(f"attention {name}", {"attention": name, "cpu_kernels": False})


def run(options: Options) -> Table:
    # As many threads of torch as of the kernels: most of these variants run by torch.
    base = replace(configured(), num_threads=None)
    engines: dict[str, DFastLLMEngine] = {}
    refused: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for variant in variants():
        started = time.perf_counter()
        try:
            engines[variant.name] = build_engine(_changed(base, variant))
        except (AttentionUnavailableError, CompilerMissingError) as error:
            refused[variant.name] = str(error)
        if variant.name == KERNELS and not engines[KERNELS]._runner.uses_kernels:
            del engines[KERNELS]
            refused[KERNELS] = "for Llama-like models on a CPU, where numba is installed"
        seconds[variant.name] = time.perf_counter() - started
    samples = interleave(
        {name: lambda number, e=engine: _times(e, options) for name, engine in engines.items()},
        options.num_rounds,
    )
    rows = _rows(engines, samples, seconds, options)
    rows += [[name, *["not here"] * (len(COLUMNS) - 1)] for name in refused]
    return Table(
        "backends",
        "One verifier forward by compilation, weights and attention",
        COLUMNS,
        rows,
        (*_NOTES, *(f"{name}: {reason}" for name, reason in refused.items())),
        dict(samples),
        Chart("ms", _bars(samples)),
    )


_NOTES = (
    f"A forward of `sequences x rows` behind {CONTEXT} tokens of context; of 20 in a row the "
    "median, and of that the median over interleaved rounds; `x plain` above 1 is faster.",
    "`logit error`: mean over the vocabulary's logits, as a share of the largest, on the "
    f"generator's prompts ({NUM_TEXTS}, the first {TEXT_TOKENS} tokens); `perplexity` on the same "
    "text; `same greedy`: rows whose most probable token is the plain one's.",
    "`start s`: loading, self-test, timing and, where it is on, compiling, which is kept on disk "
    "(TORCHINDUCTOR_CACHE_DIR) and then much shorter at the next start.",
)


def _bars(samples: dict[str, list[Sample]]) -> dict[str, dict[str, float]]:
    cases = [f"{n} x {rows}" for n, rows in CASES]
    return {case: {name: middle(own, case) for name, own in samples.items()} for case in cases}


def _changed(base: EngineConfig, variant: Variant) -> EngineConfig:
    return replace(base, **variant.changes)  # type: ignore[arg-type]


def _times(engine: DFastLLMEngine, options: Options) -> Sample:
    runner = engine._runner
    num_pages = -(-(CONTEXT + 4) // runner.page_size)
    found: dict[str, float] = {}
    for num_sequences, num_rows in CASES:
        spans = [
            Span([5] * num_rows, CONTEXT, list(range(1 + i * num_pages, 1 + (i + 1) * num_pages)))
            for i in range(num_sequences)
        ]
        rows = list(range(num_sequences * num_rows))
        times = []
        for _ in range(3 if options.quick else 20):
            started = time.perf_counter()
            runner.verify(spans, rows).max().item()  # waits for the device
            times.append(time.perf_counter() - started)
        found[f"{num_sequences} x {num_rows}"] = 1e3 * sorted(times)[len(times) // 2]
    return found


def _rows(
    engines: dict[str, DFastLLMEngine],
    samples: dict[str, list[Sample]],
    seconds: dict[str, float],
    options: Options,
) -> list[list[Cell]]:
    texts = list(_texts(engines["plain"], options))
    reference = _logits(engines["plain"], texts)
    rows: list[list[Cell]] = []
    for name, engine in engines.items():
        own, base = samples[name], samples["plain"]
        speedups = [1 / ratio(own, base, key) for key in ("1 x 1", "16 x 4")]
        times = [middle(own, f"{n} x {rows}") for n, rows in CASES]
        judged = _judge(_logits(engine, texts), reference, texts)
        rows.append([name, *times, *speedups, *judged, seconds[name]])
    return rows


def _texts(engine: DFastLLMEngine, options: Options) -> Iterator[list[int]]:
    """The generator's prompts as the model is asked them."""
    for prompt in prompts(options, 3 if options.quick else NUM_TEXTS):
        yield encoded(engine, prompt)[:TEXT_TOKENS]


def _logits(engine: DFastLLMEngine, texts: list[list[int]]) -> list[Tensor]:
    runner = engine._runner
    pages = list(range(1, -(-TEXT_TOKENS // runner.page_size) + 1))
    return [runner.verify([Span(ids, 0, pages)], list(range(len(ids)))).float() for ids in texts]


def _judge(
    logits: list[Tensor], reference: list[Tensor], texts: list[list[int]]
) -> tuple[Cell, Cell, Cell]:
    """Logit error, perplexity, share of equal argmax."""
    seen, plain = torch.cat(logits), torch.cat(reference)
    error = float((seen - plain).abs().mean() / plain.abs().max())
    nats = [
        F.cross_entropy(own[:-1], torch.tensor(ids[1:], device=own.device), reduction="sum")
        for own, ids in zip(logits, texts, strict=True)
    ]
    num_tokens = sum(len(ids) - 1 for ids in texts)
    perplexity = float((torch.stack(nats).sum() / num_tokens).exp())
    same = float((seen.argmax(-1) == plain.argmax(-1)).float().mean())
    return f"{error:.2%}", round(perplexity, 3), f"{same:.1%}"
