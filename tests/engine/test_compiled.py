"""Compiled forwards: the eager ones' logits and tokens, and no graph beyond those of the start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from engine.build import EngineConfig, build_engine
from engine.models import compiled
from engine.models.attention import sdpa_backend
from engine.models.checkpoint import UnsupportedModelError
from engine.models.compiled import (
    CUDA_BUCKETS,
    CompilerMissingError,
    num_graphs,
    num_padded_logits,
    num_padded_rows,
    pad_logit_rows,
    pad_spans,
)
from engine.models.dflash import DFlashDrafter
from engine.models.fused_drafter import fuse_drafter
from engine.models.loader import load_pair
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.models.warm_up import compile_forwards
from engine.request.sampling_params import SamplingParams
from engine.request.tokenizer import Tokenizer
from tests.engine.engines import Ask, TinyModels, count_drafts, make_engine, run_all, tokens
from tests.engine.tiny_models import SHAPE, save_pair, tiny_drafter, tiny_qwen3
from tests.engine.tiny_tokenizers import make_byte_level

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def graphs() -> Iterator[None]:
    """Each test compiles for itself: what others have compiled counts towards dynamo's limit."""
    torch._dynamo.reset()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, graphs: None) -> None:
    """Trace graphs as inductor would have them, and run them without it: no C++ is compiled."""
    monkeypatch.setattr(compiled, "_BACKEND", "aot_eager")


def small_pair(folder: Path) -> TinyModels:
    verifier = tiny_qwen3(initializer_range=0.06, num_hidden_layers=2)
    config = replace(tiny_drafter(block_size=6).config, num_target_layers=2)
    drafter = DFlashDrafter(config)
    paths = save_pair(folder, verifier, drafter)
    make_byte_level(Path(paths[0]))
    loaded = load_pair(str(paths[0]), str(paths[1]), torch.float32, CPU)
    return TinyModels(*loaded, Tokenizer(paths[0]), Path(paths[0]), Path(paths[1]))


def asks() -> list[Ask]:
    return [
        Ask(
            tokens(3 + 5 * seed, seed),
            SamplingParams(seed=seed, temperature=t, max_tokens=16, ignore_eos=True),
        )
        for seed, t in enumerate((0.0, 0.7, 1.0, 1.0, 0.7, 1.0))
    ]


def check_identity(models: TinyModels) -> None:
    """ar and deer, alone and together, eager and compiled, all write the same tokens."""
    eager = [run_all(make_engine(models, prefix_cache=False), [one])[0] for one in asks()]
    expected = [result.token_ids for result in eager]
    engine = make_engine(models)
    compile_forwards(engine._runner, 8)
    known = num_graphs()
    torch.compiler.set_stance("fail_on_recompile")
    alone = [run_all(engine, [one])[0].token_ids for one in asks()[:3]]
    assert alone == expected[:3]
    ways = [("deer", None), ("ar", None), ("deer", 4)]
    mixed = [
        replace(one, mode=ways[i % 3][0], draft_length=ways[i % 3][1])
        for i, one in enumerate(asks())
    ]
    results = run_all(engine, mixed)
    assert [result.token_ids for result in results] == expected
    assert min(count_drafts(results)) > 0
    assert num_graphs() == known, "something was compiled while the engine served"


@pytest.mark.usefixtures("traced")
def test_tokens_are_those_of_eager_forwards_and_nothing_is_compiled_later(tmp_path: Path) -> None:
    models = small_pair(tmp_path)
    assert models.drafter is not None
    models.verifier.fuse_layers()
    fuse_drafter(models.drafter)
    check_identity(models)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # inductor's own
@pytest.mark.usefixtures("graphs")
@pytest.mark.timeout(300)
def test_so_they_are_with_the_real_compiler(tmp_path: Path) -> None:
    try:
        compiled.check_compiler(CPU)
    except CompilerMissingError as missing:  # what a bare machine need not have
        pytest.skip(str(missing))
    models = small_pair(tmp_path)
    assert models.drafter is not None
    models.verifier.fuse_layers()
    fuse_drafter(models.drafter)
    check_identity(models)


@pytest.mark.usefixtures("traced")
def test_a_model_with_capped_scores_and_windows_is_compiled_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(**SHAPE, sliding_window=5, query_pre_attn_scalar=16)
    path, _ = save_pair(tmp_path, Gemma2ForCausalLM(config).eval(), tiny_drafter())
    verifier, _ = load_pair(str(path), None, torch.float32, CPU)
    runner = ModelRunner(verifier, None, num_pages=64, page_size=4, backend=sdpa_backend)
    spans = [Span(tokens(30, 1), 0, list(range(1, 9))), Span(tokens(3, 2), 0, [9])]
    expected = runner.verify(spans, [4, 29, 32])
    compile_forwards(runner, 2)
    torch.compiler.set_stance("fail_on_recompile")
    torch.testing.assert_close(runner.verify(spans, [4, 29, 32]), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("traced")
def test_a_model_that_is_not_one_graph_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = save_pair(tmp_path, tiny_qwen3(), tiny_drafter())
    verifier, _ = load_pair(str(path), None, torch.float32, CPU)
    norm = verifier.model.get_decoder().norm
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: plain(x) if x.sum().item() else x)
    runner = ModelRunner(verifier, None, num_pages=64, page_size=4, backend=sdpa_backend)
    with pytest.raises(UnsupportedModelError, match="compile is on, but cannot be done"):
        compile_forwards(runner, 2)


def test_rows_are_padded_to_buckets_on_cuda_and_not_at_all_on_a_cpu() -> None:
    assert [num_padded_rows(n, CPU) for n in (1, 2, 300)] == [1, 2, 300]
    assert [num_padded_rows(n, GPU) for n in (1, 2, 9, 256)] == [2, 2, 16, 256]
    assert num_padded_rows(CUDA_BUCKETS[-1] + 1, GPU) is None
    assert num_padded_logits(1, 24, GPU) == 24
    # On a CPU 0 and 1 would each be a graph of their own.
    assert [num_padded_logits(n, 5, CPU) for n in (0, 1, 4)] == [2, 2, 4]
    assert num_padded_logits(0, 1, CPU) == 1


def test_padding_writes_to_the_scratch_page_and_is_read_by_nobody(tmp_path: Path) -> None:
    verifier, _ = load_pair(str(save_pair(tmp_path, tiny_qwen3(), tiny_drafter())[0]), None,
                            torch.float32, CPU)  # fmt: skip
    runner = ModelRunner(verifier, None, num_pages=64, page_size=4, backend=sdpa_backend)
    spans = [Span(tokens(5, 1), 0, [1, 2]), Span(tokens(2, 2), 0, [3], 2)]
    padded = pad_spans(spans, 16)
    assert sum(len(span.token_ids) for span in padded) == 16
    assert all(list(span.page_ids) == [0] for span in padded[2:])
    rows = pad_logit_rows(torch.tensor([6, 2]), 4).tolist()
    assert rows == [6, 2, 0, 0]
    expected = runner.verify(spans, [6, 2])
    torch.testing.assert_close(runner.verify(padded, rows)[:2], expected, atol=1e-5, rtol=1e-4)


def test_missing_headers_of_python_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # something that is there
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(CompilerMissingError, match=r"Python\.h"):
        compiled.check_compiler(CPU)


def test_a_missing_compiler_is_named_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = EngineConfig(compile=True, device="cpu", model_path="/no/such/model")
    with pytest.raises(CompilerMissingError, match="no-such-compiler is not on the PATH"):
        build_engine(config)


@pytest.mark.usefixtures("traced")
def test_an_engine_with_compiled_forwards_starts_and_says_so(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO", "dfastllm.engine")
    models = small_pair(tmp_path)
    engine = build_engine(_config(models, compile=True))
    assert any("compiled 3 graphs in" in record.getMessage() for record in caplog.records)
    params = SamplingParams(max_tokens=8, seed=1, ignore_eos=True)
    eager = build_engine(_config(models))
    assert engine.generate(["abc"], params) == eager.generate(["abc"], params)


def _config(models: TinyModels, **other: Any) -> EngineConfig:
    return EngineConfig(
        model_path=str(models.verifier_path),
        drafter_path=str(models.drafter_path),
        device="cpu",
        max_batch_size=2,
        **other,
    )
