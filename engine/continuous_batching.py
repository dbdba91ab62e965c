"""Continuous batching: a step at a time, a free place filled at every step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch

from engine.base import BaseStats
from engine.cache.arrivals import Arrivals
from engine.cache.page_pool import OutOfPagesError, PagePool
from engine.cache.prefix_cache import PrefixCache
from engine.generation.step_clock import Schedule
from engine.generation.step_runner import Commit, StepRunner
from engine.generation.strategy import GenerationStrategy
from engine.request.outputs import StepOutput
from engine.request.sequence import Sequence, SequenceStatus

__all__ = [
    "BatcherConfig",
    "BatcherStats",
    "ContinuousBatchingEngine",
    "PrefixCache",
    "RequestBatcher",
]


@dataclass(frozen=True)
class BatcherConfig:
    """How much one step may hold."""

    max_batch_size: int = 16
    max_step_tokens: int = 512
    """Rows of one verifier forward that the scheduler aims at; decode rows always run."""
    min_prefill_tokens: int = 64
    """Rows that prompts get in every step, however many sequences decode."""


@dataclass
class BatcherStats(BaseStats):
    num_steps: int = 0
    num_prompt_tokens: int = 0  # read by the verifier, cached ones not counted
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_finished: int = 0


class RequestBatcher:
    """The scheduler: decides which sequences take part in the next step, and with how many rows.

    Sequences that decode always take part. Prompts are read in chunks with what is left of the
    step's budget, and with a guaranteed share of it. When pages run out the youngest sequence is
    pre-empted: it gives its pages back and is read again later, output included.
    """

    def __init__(
        self,
        config: BatcherConfig,
        pool: PagePool,
        prefix_cache: PrefixCache,
        strategies: Mapping[str, GenerationStrategy],
    ) -> None:
        self.config = config
        self.stats = BatcherStats()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self.pool = pool
        self.prefix_cache = prefix_cache
        self.arrivals = Arrivals(prefix_cache)
        self.strategies = strategies
        self._ended_before_start: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.arrivals or self._ended_before_start)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; one whose replay has ended it only waits to be reported."""
        if sequence.is_finished:
            self._ended_before_start.append(sequence)
        elif not (self._reads_cache(sequence) and self.arrivals.expect(sequence)):
            self.waiting.append(sequence)

    def abort(self, sequence_id: str) -> None:
        """Forget a sequence, wherever it is; its pages are free at once."""
        self._ended_before_start = [
            seq for seq in self._ended_before_start if seq.sequence_id != sequence_id
        ]
        self.arrivals.discard(sequence_id)
        for sequence in [*self.running, *self.waiting]:
            if sequence.sequence_id == sequence_id:
                self._remove(sequence)

    def schedule(self) -> Schedule:
        self._admit()
        reading: list[Sequence] = []
        decoding: list[Sequence] = []
        for sequence in self.running:
            (reading if self._is_prefilling(sequence) else decoding).append(sequence)
        decoding = _still_running([seq for seq in decoding if self._can_decode(seq)])
        if not reading:
            return Schedule(decoding)
        prefills = self._prefills(reading, self._prefill_budget(decoding))
        # An older prompt may just have pre-empted one that was to decode.
        return Schedule(_still_running(decoding), prefills)

    def postprocess(self, commits: Seq[Commit]) -> list[StepOutput]:
        """Commit what the step gave, and let the sequences go that it ended."""
        self.stats.num_steps += 1
        ended, self._ended_before_start = self._ended_before_start, []
        outputs = [output for seq in ended if (output := seq.take_output()) is not None]
        for commit in commits:
            sequence = commit.sequence
            num_new = commit.num_computed - sequence.num_computed
            if self._is_prefilling(sequence):
                self.stats.num_prompt_tokens += num_new
            taken = sequence.commit(commit.token_ids, commit.logprobs)
            if commit.ending is not None:
                sequence.end(commit.ending)
            self.stats.num_output_tokens += taken
            sequence.num_computed = min(commit.num_computed, sequence.num_tokens)
            self._file_full_pages(sequence)
            output = sequence.take_output()
            if output is not None:
                outputs.append(output)
            if sequence.is_finished:
                self.stats.num_finished += 1
                self._remove(sequence)
        return outputs

    def _admit(self) -> None:
        """Give free places to waiting sequences, first come first served."""
        self.waiting.extendleft(reversed(self.arrivals.take()))
        while self.waiting and len(self.running) < self.config.max_batch_size:
            sequence = self.waiting[0]
            if not self._has_room_for(sequence):
                return
            self.waiting.popleft()
            self._read_cache(sequence)
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)

    def _has_room_for(self, sequence: Sequence) -> bool:
        """Whether the whole prompt would fit now; a lone sequence is always tried."""
        promised = sum(self._num_missing_pages(running) for running in self.running)
        needed = self._num_missing_pages(sequence)
        return not self.running or needed + promised <= self.pool.num_available

    def _num_missing_pages(self, sequence: Sequence) -> int:
        """Pages that it takes to read what is there, less those that it holds already."""
        num_positions = sequence.num_tokens + 1
        if not self._is_prefilling(sequence):
            num_positions = self.strategies[sequence.mode].max_positions(sequence)
        return max(0, -(-num_positions // self.pool.page_size) - len(sequence.page_ids))

    def _read_cache(self, sequence: Sequence) -> None:
        if not self._reads_cache(sequence):
            return
        pages, digests = self.prefix_cache.match(
            sequence.token_ids, sequence.cache_salt, self.arrivals.pages_of(sequence)
        )
        sequence.page_ids, sequence.page_digests = pages, digests
        sequence.num_computed = len(pages) * self.pool.page_size
        if not sequence.num_preemptions:  # else it may find what it has computed itself
            sequence.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt_tokens)

    def _can_decode(self, sequence: Sequence) -> bool:
        if sequence.status is not SequenceStatus.RUNNING:
            return False
        return self._reserve(sequence, self.strategies[sequence.mode].max_positions(sequence))

    def _is_prefilling(self, sequence: Sequence) -> bool:
        """Whether the verifier has something to read before the strategy's next step."""
        return self.strategies[sequence.mode].reads_prompt(sequence) and sequence.is_prefilling

    def _reads_cache(self, sequence: Sequence) -> bool:
        return sequence.may_read_cache and self._shares_pages(sequence)

    def _shares_pages(self, sequence: Sequence) -> bool:
        strategy = self.strategies[sequence.mode]
        return strategy.shares_pages and strategy.reads_prompt(sequence)

    def _prefill_budget(self, decoding: Seq[Sequence]) -> int:
        num_rows = sum(self.strategies[seq.mode].max_rows(seq) for seq in decoding)
        return max(self.config.max_step_tokens - num_rows, self.config.min_prefill_tokens)

    def _prefills(self, reading: Seq[Sequence], budget: int) -> list[tuple[Sequence, int]]:
        prefills = []
        for sequence in reading:
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            count = min(sequence.num_tokens - sequence.num_computed, budget)
            if count <= 0 or not self._reserve(sequence, sequence.num_computed + count):
                break
            prefills.append((sequence, count))
            budget -= count
        return [(seq, n) for seq, n in prefills if seq.status is SequenceStatus.RUNNING]

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make sure there are pages for `num_tokens`; False where the sequence was pre-empted."""
        while len(sequence.page_ids) * self.pool.page_size < num_tokens:
            try:
                sequence.page_ids.append(self.pool.acquire())
            except OutOfPagesError:
                if not self._preempt_youngest(sequence):
                    return False
        return True

    def _preempt_youngest(self, needy: Sequence) -> bool:
        """Free the pages of the sequence admitted last; False where that is the needy one."""
        youngest = self.running[-1]
        if youngest is needy and len(self.running) == 1:
            raise OutOfPagesError(f"{needy.sequence_id} alone needs more pages than there are")
        self.stats.num_preemptions += 1
        self.running.remove(youngest)
        self._release_pages(youngest)
        youngest.status = SequenceStatus.WAITING
        youngest.num_preemptions += 1
        self.waiting.appendleft(youngest)
        return youngest is not needy

    def _file_full_pages(self, sequence: Sequence) -> None:
        num_full = sequence.num_computed // self.pool.page_size
        if num_full > len(sequence.page_digests) and self._shares_pages(sequence):
            self.prefix_cache.insert(
                sequence.token_ids,
                sequence.page_ids,
                sequence.page_digests,
                num_full,
                sequence.cache_salt,
            )

    def _remove(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release_pages(sequence)
        sequence.status = SequenceStatus.FINISHED
        self.strategies[sequence.mode].release(sequence)

    def _release_pages(self, sequence: Sequence) -> None:
        # Last page first: of a prefix, the end is forgotten before the beginning.
        for page_id in reversed(sequence.release_pages()):
            self.pool.release(page_id)


def _still_running(sequences: Seq[Sequence]) -> list[Sequence]:
    return [seq for seq in sequences if seq.status is SequenceStatus.RUNNING]


class ContinuousBatchingEngine:
    """The engine's loop: schedule, run, postprocess."""

    def __init__(self, batcher: RequestBatcher, runner: StepRunner) -> None:
        self.batcher = batcher
        self.runner = runner

    @property
    def has_work(self) -> bool:
        return self.batcher.has_work

    @property
    def num_running(self) -> int:
        return len(self.batcher.running)

    @property
    def num_waiting(self) -> int:
        return len(self.batcher.waiting) + len(self.batcher.arrivals)

    def add(self, sequence: Sequence) -> None:
        self.batcher.add(sequence)

    def abort(self, sequence_id: str) -> None:
        self.batcher.abort(sequence_id)

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        scheduled = self.batcher.schedule()
        num_rows = sum(count for _, count in scheduled.prefills)
        arrivals = self.batcher.arrivals
        arrivals.begin_step(num_rows)
        if not (scheduled.decoding or num_rows):
            arrivals.nap()
        started = time.perf_counter()
        commits = self.runner.run(scheduled)
        seconds = time.perf_counter() - started
        arrivals.note_step(num_rows, len(scheduled.decoding), seconds)
        return self.batcher.postprocess(commits)

    def get_stats(self) -> dict[str, Any]:
        return self.batcher.stats.to_dict()

    def reset_stats(self) -> None:
        self.batcher.stats.reset()
