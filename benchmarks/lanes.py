"""Lanes: batches of sequences on one engine that take turns, each a few tokens at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.prompts import Prompt
from engine.dfastllm_engine import DFastLLMEngine
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence as EngineSequence


class Lane:
    """One way of generating, with a batch of its own that rests while others take their turn.

    It holds its pages meanwhile, so the engine must have pages for all of its lanes.
    """

    def __init__(
        self, name: str, engine: DFastLLMEngine, mode: str, options: GenerationOptions
    ) -> None:
        self.name = name
        self._engine = engine
        self._mode = mode
        self._options = options
        self._running: list[EngineSequence] = []
        self._ahead = 0  # tokens that the last piece has written beyond its share

    def open(self, prompts: Sequence[Prompt], num_prompt_tokens: int, temperature: float) -> None:
        """Drop what runs, and read these prompts (of each the last tokens) until all decode.

        The number of a prompt is its seed. The sequences write as long as the context lasts.
        """
        self.close()
        with self._on_stage():
            for index, prompt in enumerate(prompts):
                self._engine.add(self._sequence(index, prompt, num_prompt_tokens, temperature))
            while self._engine.num_waiting or any(seq.is_prefilling for seq in self._sequences):
                self._engine.step()
        self._ahead = 0

    def advance(self, num_tokens: int) -> dict[str, float]:
        """Step until so many tokens more are written; how many were, and in what time.

        The first step finds the caches full of another lane, so it counts as the mean of the
        others. What the last one writes beyond its share counts for the next piece: all lanes get
        through the same text.
        """
        due = num_tokens - self._ahead
        with self._on_stage():
            written = self._step()
            num_timed = 0
            started = time.perf_counter()
            while not num_timed or written < due:
                written += self._step()
                num_timed += 1
            seconds = time.perf_counter() - started
        self._ahead = written - due
        return {"num_tokens": written, "seconds": seconds * (num_timed + 1) / num_timed}

    def _step(self) -> int:
        """Tokens written."""
        outputs = self._engine.step()
        assert not any(output.finish_reason for output in outputs), "a batch has shrunk"
        return sum(len(output.token_ids) for output in outputs)

    def close(self) -> None:
        with self._on_stage():
            for sequence in list(self._sequences):
                self._engine.abort(sequence.sequence_id)

    @property
    def _sequences(self) -> list[EngineSequence]:
        return self._engine.batching.batcher.running

    @contextmanager
    def _on_stage(self) -> Iterator[None]:
        """For the length of a block the engine runs this lane's sequences and no others."""
        batcher = self._engine.batching.batcher
        batcher.running, self._running = self._running, batcher.running
        try:
            yield
        finally:
            batcher.running, self._running = self._running, batcher.running

    def _sequence(
        self, index: int, prompt: Prompt, num_prompt_tokens: int, temperature: float
    ) -> EngineSequence:
        params = SamplingParams(seed=index, temperature=temperature, ignore_eos=True)
        return self._engine.make_sequence(
            f"{self.name} {index}",
            encoded(self._engine, prompt)[-num_prompt_tokens:],
            params,
            mode=self._mode,
            options=self._options,
        )


def encoded(engine: DFastLLMEngine, prompt: Prompt, num_tokens: int = 0) -> list[int]:
    """A prompt as the model is asked it: its last tokens, where not all leave room for so many."""
    if prompt.messages:
        token_ids = engine.tokenizer.apply_chat_template(list(prompt.messages))
    else:
        token_ids = engine.tokenizer.encode(prompt.text)
    return list(token_ids[-(engine.max_model_len - num_tokens) :])
