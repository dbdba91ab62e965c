"""The engine's face: text and token ids in, step outputs or finished texts out."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.base import HasStats
from engine.cache.page_store import PageStore
from engine.continuous_batching import ContinuousBatchingEngine
from engine.decoding.logit_processors import check_vocab
from engine.models.model_runner import ModelRunner
from engine.request.errors import InvalidRequestError
from engine.request.grammar_compiler import GrammarCompiler
from engine.request.grammar_matcher import GrammarMatcher
from engine.request.options import NO_OPTIONS, GenerationOptions
from engine.request.outputs import FinishReason, SequenceSummary, StepOutput
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence
from engine.request.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Completion:
    """All that one prompt gave."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    summary: SequenceSummary

    @classmethod
    def of(cls, outputs: Seq[StepOutput]) -> Completion:
        """Join the outputs of one sequence, the last of which ended it."""
        reason, summary = outputs[-1].finish_reason, outputs[-1].summary
        assert reason is not None and summary is not None, "the sequence has not ended"
        text = "".join(output.text for output in outputs)
        token_ids = tuple(token_id for output in outputs for token_id in output.token_ids)
        return cls(text, token_ids, reason, summary)


class DFastLLMEngine:
    """Models that fit together and a tokenizer, ready to be stepped by one thread."""

    def __init__(
        self,
        batching: ContinuousBatchingEngine,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        *,
        model_name: str,
        max_model_len: int,
        default_mode: str,
        modes: tuple[str, ...],
        fingerprint: str,
        defaults: GenerationOptions = NO_OPTIONS,
        page_tag: bytes = b"",
    ) -> None:
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.max_model_len = max_model_len
        self.modes = modes
        self.fingerprint = fingerprint
        self.page_tag = page_tag
        """Equal for two engines only where equal prefixes have equal pages."""
        self._default_mode = default_mode
        self._defaults = defaults
        self._batching = batching
        self._runner = runner
        self._grammars = GrammarCompiler(tokenizer, runner.vocab_size)

    @property
    def batching(self) -> ContinuousBatchingEngine:
        """The loop inside, for callers who add, step and abort by themselves."""
        return self._batching

    @property
    def max_batch_size(self) -> int:
        return self._batching.batcher.config.max_batch_size

    @property
    def page_bytes(self) -> int | None:
        """What a store keeps of a page; None: no page of this engine can be shared."""
        floors = self._batching.batcher.prefix_cache.floors
        return None if floors is None else floors.page_bytes

    def use_page_store(self, store: PageStore) -> None:
        """Share prefixes through a store from now on."""
        floors = self._batching.batcher.prefix_cache.floors
        assert floors is not None, "no page of this engine can be shared"
        floors.store = store

    @property
    def has_work(self) -> bool:
        return self._batching.has_work

    @property
    def num_running(self) -> int:
        return self._batching.num_running

    @property
    def num_waiting(self) -> int:
        return self._batching.num_waiting

    def make_sequence(
        self,
        sequence_id: str,
        prompt_token_ids: Seq[int],
        params: SamplingParams,
        *,
        prompt_index: int = 0,
        choice: int = 0,
        mode: str | None = None,
        options: GenerationOptions = NO_OPTIONS,
        cache_salt: str = "",
        replay: Seq[int] = (),
    ) -> Sequence:
        """Check a request against this engine; raises `InvalidRequestError` naming the field.

        `replay` holds output tokens of an earlier attempt: they count as output (penalties, stop
        strings, limits), are never reported again, and the rest follows as it would have then.
        """
        mode = mode or self._default_mode
        self._check(prompt_token_ids, params, mode, options)
        strategy = self._batching.batcher.strategies[mode]
        limit = strategy.default_max_tokens(len(prompt_token_ids), options)
        if params.max_tokens is None and limit is not None:
            params = replace(params, max_tokens=limit)
        options = options.with_defaults(self._defaults)
        return Sequence(
            sequence_id,
            prompt_token_ids,
            params,
            self.tokenizer,
            max_model_len=self.max_model_len,
            mode=mode,
            prompt_index=prompt_index,
            choice=choice,
            options=options,
            cache_salt=cache_salt,
            grammar=self._grammar_of(params),
            replay=replay,
            is_lossless=strategy.is_lossless_with(options),
        )

    def add(self, sequence: Sequence) -> None:
        self._batching.add(sequence)

    def abort(self, sequence_id: str) -> None:
        """Drop a sequence; its place and pages are free for the next step."""
        self._batching.abort(sequence_id)

    def step(self) -> list[StepOutput]:
        """Advance every sequence that has a place."""
        return self._batching.step()

    def generate(
        self,
        prompts: Seq[str],
        params: SamplingParams | None = None,
        *,
        mode: str | None = None,
        options: GenerationOptions = NO_OPTIONS,
    ) -> list[str]:
        """Complete a batch of prompts and return the texts, in order."""
        return [done.text for done in self.complete(prompts, params, mode=mode, options=options)]

    def complete(
        self,
        prompts: Seq[str],
        params: SamplingParams | None = None,
        *,
        mode: str | None = None,
        options: GenerationOptions = NO_OPTIONS,
    ) -> list[Completion]:
        """Complete a batch of prompts; each draws noise of its own from the one seed."""
        params = params or SamplingParams()
        sequences = [
            self.make_sequence(
                f"prompt-{index}",
                self.tokenizer.encode(prompt),
                params,
                prompt_index=index,
                mode=mode,
                options=options,
            )
            for index, prompt in enumerate(prompts)
        ]  # all are checked before any of them runs
        outputs: dict[str, list[StepOutput]] = {seq.sequence_id: [] for seq in sequences}
        for sequence in sequences:
            self.add(sequence)
        while self.has_work:
            for output in self.step():
                outputs[output.sequence_id].append(output)
        return [Completion.of(own) for own in outputs.values()]

    def metrics(self) -> dict[str, float]:
        """Counters and gauges, all measured, by their Prometheus names without prefix."""
        batcher = self._batching.batcher
        counts = {
            **asdict(batcher.stats),
            **batcher.prefix_cache.get_stats(),
            **batcher.arrivals.get_stats(),
            **asdict(self._runner.counts),
        }
        gauges = {
            "num_pages": batcher.pool.num_pages - 1,
            "num_pages_held": batcher.pool.num_held,
            "num_requests_running": self.num_running,
            "num_requests_waiting": self.num_waiting,
        }
        for name, strategy in batcher.strategies.items():
            if isinstance(strategy, HasStats):
                counts |= {f"{name}_{key}": value for key, value in strategy.get_stats().items()}
        return {name: float(value) for name, value in {**counts, **gauges}.items()}

    def get_stats(self) -> dict[str, Any]:
        return self.metrics()

    def reset_stats(self) -> None:
        self._batching.batcher.stats.reset()
        self._batching.batcher.prefix_cache.reset_stats()
        self._batching.batcher.arrivals.stats.reset()
        self._runner.counts.reset()
        for strategy in self._batching.batcher.strategies.values():
            if isinstance(strategy, HasStats):
                strategy.reset_stats()

    def _check(
        self,
        prompt_token_ids: Seq[int],
        params: SamplingParams,
        mode: str,
        options: GenerationOptions,
    ) -> None:
        if mode not in self.modes:
            known = ", ".join(sorted(self.modes))
            raise InvalidRequestError(f"unknown mode {mode!r}; this worker offers: {known}", "mode")
        if not prompt_token_ids:
            raise InvalidRequestError("the prompt holds no token", "prompt")
        vocab_size = self._runner.vocab_size
        if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocab_size:
            raise InvalidRequestError(f"token ids must be in [0, {vocab_size})", "prompt")
        check_vocab(params, vocab_size)
        for name, texts in (("suffixes", options.suffixes), ("prediction", [options.prediction])):
            if not all(0 <= i < vocab_size for text in texts for i in text):
                raise InvalidRequestError(f"token ids must be in [0, {vocab_size})", name)
        self._check_length(len(prompt_token_ids) + options.num_suffix_tokens, params)
        strategy = self._batching.batcher.strategies[mode]
        for name in options.given():
            if name not in strategy.honours and name != "shows_steps":
                message = (
                    f"mode {mode!r} has no use for {name}; leave it out or choose another mode"
                )
                raise InvalidRequestError(message, name)
        if params.grammar is not None and not strategy.keeps_grammars:
            param = params.grammar.param
            message = f"mode {mode!r} cannot keep to a grammar, so {param} needs another mode"
            raise InvalidRequestError(message, param)
        strategy.check(len(prompt_token_ids), params, options)

    def _grammar_of(self, params: SamplingParams) -> GrammarMatcher | None:
        if params.grammar is None:
            return None
        return self._grammars.matcher(params.grammar, ignore_eos=params.ignore_eos)

    def _check_length(self, num_given_tokens: int, params: SamplingParams) -> None:
        wanted = params.max_tokens
        total = num_given_tokens + (1 if wanted is None else wanted)
        if total <= self.max_model_len:
            return
        asked = "" if wanted is None else f" and asks for {wanted} more"
        raise InvalidRequestError(
            f"the context holds {self.max_model_len} tokens, "
            f"but the request has {num_given_tokens}{asked}",
            "messages" if wanted is None else "max_tokens",
            "context_length_exceeded",
        )
