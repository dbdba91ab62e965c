"""A self-test at load: packed, paged logits must equal the model's own eager logits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.models.canvas_lm import CanvasLM
from engine.models.causal_lm import CausalLM, UnsupportedModelError
from engine.models.diffusion_lm import ContextKind, DiffusionConfig
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span

logger = logging.getLogger("dfastllm.engine")

_NUM_ROWS = 24  # whose logits are compared, the last ones
_MAX_TOKENS = 1056  # reaches beyond a window of 1024, as Gemma 3 has; longer ones cost too much
PackedForward = Callable[[Seq[Span], list[int]], Tensor]
Piece = tuple[int, int, int | None]


@dataclass(frozen=True)
class _Trial:
    """Random tokens, how they are cut into forwards, and who sees whom (None: causal)."""

    token_ids: Tensor
    forwards: list[list[Piece]]
    """Of each forward its pieces: positions start to end, that see all below the third number."""
    visible: Tensor | None = None

    @property
    def first_row(self) -> int:
        """The first position whose logits are compared."""
        return max(0, len(self.token_ids) - _NUM_ROWS)


@torch.inference_mode()
def check_against_eager(runner: ModelRunner) -> list[Callable[[], None]]:
    """Run random tokens both ways; raise `UnsupportedModelError` where the logits differ.

    Catches what paged attention cannot express: recurrent layers, ALiBi. A diffusion model reads
    context and block as it was trained to, against an explicit mask. What is returned repeats the
    packed forwards and compares again, for whoever has changed how they run since. Uses leading
    pages, so it must run before any request does.
    """
    room = (runner.num_pages - 1) * runner.page_size
    again: list[Callable[[], None]] = []
    if runner.has_verifier:
        model = runner.verifier
        trial = _causal_trial(_random_tokens(model, min(_num_tokens(model), room)))
        again.append(_check(model, model.model_type, trial, runner.verify, runner.page_size))
    if runner.diffusion is not None:
        model, config = runner.diffusion.backbone, runner.diffusion.config
        num_tokens = max(_num_tokens(model), 2 * (config.block_length or 0))
        trial = _diffusion_trial(_random_tokens(model, min(num_tokens, room)), config)
        kind = runner.diffusion.model_type
        again.append(_check(model, kind, trial, runner.denoise, runner.page_size))
    if runner.canvas is not None:
        _check_canvas(runner.canvas, runner, room)
    return again


def _check_canvas(model: CanvasLM, runner: ModelRunner, room: int) -> None:
    """Two passes over a canvas, the second told of the first."""
    length = min(model.config.canvas_length, room // 2)
    tokens = _random_tokens(model, length + min(_num_tokens(model), room - length))
    text, canvas = tokens[:-length].to(runner.device), tokens[-length:].to(runner.device)
    pages = list(range(1, -(-len(tokens) // runner.page_size) + 1))
    span = Span(canvas.tolist(), len(text), pages, len(tokens))
    spans, before = [Span(text.tolist(), 0, pages), span], None
    for _ in range(2):
        num_rows = sum(len(span.token_ids) for span in spans)
        packed = runner.denoise(spans, list(range(num_rows - length, num_rows)))
        before = model.eager_logits(text, canvas, before)
        _compare(packed, before, model.model_type, model.dtype)
        spans = [replace(span, feedback=model.soften(before))]


def _num_tokens(model: CausalLM | CanvasLM) -> int:
    """Enough to leave a sliding window behind, where that can be afforded."""
    window = model.window or 0
    if window + _NUM_ROWS > _MAX_TOKENS:
        message = "%s: its window of %d is longer than the self-test can be"
        logger.info(message, model.model_type, window)
        window = 0
    return min(window + _NUM_ROWS, model.max_positions)


def _random_tokens(model: CausalLM | CanvasLM, num_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.vocab_size, (num_tokens,), generator=generator)


def _causal_trial(token_ids: Tensor) -> _Trial:
    """In two chunks: the second reads what the first has left in the pages."""
    length = len(token_ids)
    split = length - length // 3 if length <= _NUM_ROWS else length - _NUM_ROWS // 3
    return _Trial(token_ids, [[(0, split, None)], [(split, length, None)]])


def _diffusion_trial(token_ids: Tensor, config: DiffusionConfig) -> _Trial:
    length = len(token_ids)
    split = length * 2 // 3
    match config.context:
        case ContextKind.CAUSAL:  # context, then a block
            forwards: list[list[Piece]] = [[(0, split, None)], [(split, length, length)]]
        case ContextKind.BIDIRECTIONAL:  # all at once, then the middle again
            forwards = [
                [(0, split, length), (split, length, length)],
                [(split // 2, split, length)],
            ]
        case ContextKind.BLOCK_CAUSAL:  # block by block
            assert config.block_length is not None
            starts = range(0, length, config.block_length)
            ends = [min(start + config.block_length, length) for start in starts]
            forwards = [[(start, end, end)] for start, end in zip(starts, ends, strict=True)]
    return _Trial(token_ids, forwards, config.visible(length, split))


def _check(
    model: CausalLM, kind: str, trial: _Trial, forward: PackedForward, page_size: int
) -> Callable[[], None]:
    num_rows = len(trial.token_ids) - trial.first_row
    try:
        packed = _packed_logits(forward, trial, page_size)
        ids = trial.token_ids[None].to(model.device)
        expected = model.eager_logits(ids, trial.visible, num_rows)[0].float()
    # What a model of another kind trips over, which can be nearly anything in its forward.
    except (NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        message = f"{kind} does not run on paged attention: {error}"
        raise UnsupportedModelError(message) from error
    _compare(packed, expected, kind, model.dtype)

    @torch.inference_mode()
    def check_again() -> None:
        _compare(_packed_logits(forward, trial, page_size), expected, kind, model.dtype)

    return check_again


def _compare(packed: Tensor, expected: Tensor, kind: str, dtype: torch.dtype) -> None:
    expected = expected.masked_fill(packed == -torch.inf, -torch.inf)  # the mask token's own
    finite = expected.isfinite()
    packed, expected = packed[finite], expected[finite]
    difference = (packed - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    limit = 1e-3 if dtype is torch.float32 else 6e-2
    if not bool(difference <= limit):
        raise UnsupportedModelError(
            f"{kind} does not run on paged attention: its logits differ "
            f"by {float(difference):.2e} of their largest (allowed {limit:.0e}), "
            "so its output would be wrong"
        )


def _packed_logits(forward: PackedForward, trial: _Trial, page_size: int) -> Tensor:
    """Logits of the last rows, [R, V]; of a row that is run twice, the second ones."""
    pages = list(range(1, -(-len(trial.token_ids) // page_size) + 1))
    found: dict[int, Tensor] = {}
    for pieces in trial.forwards:
        spans = [Span(trial.token_ids[a:b].tolist(), a, pages, end) for a, b, end in pieces]
        positions = [row for a, b, _ in pieces for row in range(a, b)]
        wanted = [i for i, row in enumerate(positions) if row >= trial.first_row]
        logits = forward(spans, wanted)
        found |= {positions[i]: row for i, row in zip(wanted, logits, strict=True)}
    return torch.stack([found[row] for row in sorted(found)]).float()
