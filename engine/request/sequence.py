"""A sequence: one request's tokens on their way, and the one place where output is committed."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from enum import Enum, auto
from itertools import islice

from engine.request.grammar_matcher import GrammarMatcher
from engine.request.options import NO_OPTIONS, Acceptance, GenerationOptions
from engine.request.outputs import (
    Ending,
    FinishReason,
    SequenceSummary,
    StepOutput,
    StepTrace,
    TokenLogprobs,
)
from engine.request.sampling_params import SamplingParams
from engine.request.text_stream import StopMatcher, TextStream, hole_texts
from engine.request.tokenizer import Tokenizer


class SequenceStatus(Enum):
    WAITING = auto()  # no pages yet, or none any more after a pre-emption
    RUNNING = auto()  # holds pages; prefilling or decoding
    FINISHED = auto()


class Sequence:
    """Prompt and output tokens of one choice of one request.

    At rest the KV of `num_computed` leading tokens is valid. A sequence that decodes has exactly
    one token without KV, the last one committed: it is the first row of the next forward.
    """

    def __init__(
        self,
        sequence_id: str,
        prompt_token_ids: Seq[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        max_model_len: int,
        mode: str,
        prompt_index: int = 0,
        choice: int = 0,
        options: GenerationOptions = NO_OPTIONS,
        cache_salt: str = "",
        grammar: GrammarMatcher | None = None,
        replay: Seq[int] = (),
        is_lossless: bool = True,
    ) -> None:
        self.sequence_id = sequence_id
        self.params = params
        self.mode = mode
        self.prompt_index = prompt_index
        self.choice = choice
        self.sampling = (params, prompt_index, choice)
        """What its draws hang on, as one object by which a batch is known again."""
        self.options = options
        self.cache_salt = cache_salt
        self.grammar = grammar  # stands after the output tokens, whatever they came from
        self.is_lossless = is_lossless
        self.num_prompt_tokens = len(prompt_token_ids)
        room = max_model_len - self.num_prompt_tokens
        self.max_output_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        self.token_ids = list(prompt_token_ids)
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.page_ids: list[int] = []
        self.page_digests: list[bytes] = []  # of the full pages that are in the prefix cache
        self.num_computed = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # prompt tokens found in the prefix cache at first admission
        self.num_draft_tokens = 0
        self.num_predicted_tokens = 0  # of the draft tokens: those that the client gave
        self.num_predicted_accepted = 0
        self.num_forwards = 0  # of any model, that had rows of this sequence
        self.hole_lengths: tuple[int, ...] = ()
        self.acceptance_histogram: list[int] = []
        self.trace: StepTrace | None = None  # of the last step, until it is taken
        self._prompt_logprobs: list[TokenLogprobs] = []
        # A replay has given them out before.
        self._num_prompt_logprobs = self.num_prompt_tokens if replay else 0
        self._tokenizer = tokenizer
        eos_token_ids = frozenset() if params.ignore_eos else tokenizer.eos_token_ids
        self._end_token_ids = eos_token_ids.union(params.stop_token_ids)
        self._text = TextStream(tokenizer, context=prompt_token_ids)
        self._stops = StopMatcher(params.stop)
        self._pending_text = ""
        self._pending_logprobs: list[TokenLogprobs] = []
        self._num_emitted = self.num_prompt_tokens
        if replay:
            self.commit(replay)
            self._forget_pending()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_remaining(self) -> int:
        """How many more tokens may be committed."""
        return self.num_prompt_tokens + self.max_output_tokens - len(self.token_ids)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_prefilling(self) -> bool:
        """More than the one newest token has no KV yet (a prompt, a replay, a pre-emption)."""
        num_tokens = len(self.token_ids)
        return num_tokens - self.num_computed > 1 or num_tokens == self.num_prompt_tokens

    @property
    def may_read_cache(self) -> bool:
        """Prompt logprobs need logits of every prompt row, which a cached page does not have."""
        return not self.wants_prompt_logprobs

    def commit(self, token_ids: Seq[int], logprobs: Seq[TokenLogprobs] = ()) -> int:
        """Make tokens output, in order, until one of them ends the sequence.

        Returns how many were taken: those after an end of sequence, a stop or the limit are not,
        nor is one that the grammar refuses. A grammar that is complete ends the sequence, even
        before `min_tokens` and where the end of sequence is ignored.
        """
        if token_ids and self.num_remaining <= 0 and not self.is_finished:
            self._finish(FinishReason.LENGTH)  # max_tokens 0: only the prompt was asked about
        for index, token_id in enumerate(token_ids):
            if self.is_finished:
                return index
            if self.grammar is not None and not self.grammar.accept(token_id):
                # A dead end: nothing that this model can say goes on with what was begun.
                is_whole = self.grammar.is_satisfied
                self._finish(FinishReason.STOP if is_whole else FinishReason.LENGTH)
                return index
            self.token_ids.append(token_id)
            if index < len(logprobs):
                self._pending_logprobs.append(logprobs[index])
            self._check_end(token_id)
        return len(token_ids)

    def end(self, ending: Ending) -> None:
        """Take a strategy's word that nothing more will come; a token may have ended it before."""
        self.hole_lengths = ending.hole_lengths
        if not self.is_finished:
            self._finish(ending.reason)

    def is_end(self, token_id: int, num_output_tokens: int) -> bool:
        """Whether a token ends the text when it is the last of so many output tokens."""
        return token_id in self._end_token_ids and num_output_tokens > self.params.min_tokens

    def legal_prefix(self, draft: Seq[int]) -> list[int]:
        """The draft up to the first token that this sequence's grammar refuses.

        Under the rejection rule all of it: where a draft ends must not hang on what was drawn, and
        a token without probability is refused all the same.
        """
        if self.grammar is None or self.options.acceptance is Acceptance.REJECTION:
            return list(draft)
        return self.grammar.legal_prefix(draft)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether rows of the prompt still have to give theirs."""
        return self.params.prompt_logprobs and self._num_prompt_logprobs < self.num_prompt_tokens

    def keep_prompt_logprobs(self, start: int, logprobs: Seq[TokenLogprobs]) -> None:
        """Take those of prompt tokens from `start` on; a prompt read again gives no new ones."""
        new = logprobs[self._num_prompt_logprobs - start :]
        self._prompt_logprobs += new
        self._num_prompt_logprobs += len(new)

    def record_draft(
        self, num_drafted: int, num_accepted: int, *, is_predicted: bool = False
    ) -> None:
        """Count one verify step that had `num_drafted` tokens to check, perhaps the client's."""
        self.num_draft_tokens += num_drafted
        if is_predicted:
            self.num_predicted_tokens += num_drafted
            self.num_predicted_accepted += num_accepted
        histogram = self.acceptance_histogram
        if num_accepted >= len(histogram):
            histogram.extend([0] * (num_accepted + 1 - len(histogram)))
        histogram[num_accepted] += 1

    def release_pages(self) -> list[int]:
        """Hand the pages back to the caller; their KV counts as not computed from here on."""
        pages, self.page_ids, self.page_digests = self.page_ids, [], []
        self.num_computed = 0
        return pages

    def take_output(self) -> StepOutput | None:
        """What has been committed since the last call; None where that is nothing."""
        is_finished = self.is_finished
        token_ids = tuple(self.token_ids[self._num_emitted :])
        if not (token_ids or self._pending_text or is_finished or self.trace):
            return None
        wants_logprobs = self.params.logprobs is not None
        output = StepOutput(
            sequence_id=self.sequence_id,
            token_ids=token_ids,
            text=self._pending_text,
            logprobs=tuple(self._pending_logprobs) if wants_logprobs else None,
            prompt_logprobs=self._take_prompt_logprobs(),
            finish_reason=self.finish_reason,
            summary=self._summary() if is_finished else None,
            trace=self.trace,
        )
        self._forget_pending()
        return output

    def _check_end(self, token_id: int) -> None:
        num_output_tokens = self.num_output_tokens
        if self.is_end(token_id, num_output_tokens):
            self._finish(FinishReason.STOP)
            return
        may_stop = num_output_tokens > self.params.min_tokens
        text, stopped = self._stops.push(self._text.push(token_id), may_stop=may_stop)
        self._pending_text += text
        if stopped:
            self.finish_reason = FinishReason.STOP
        elif self.grammar is not None and self.grammar.is_complete:
            self._finish(FinishReason.STOP)
        elif num_output_tokens >= self.max_output_tokens:
            self._finish(FinishReason.LENGTH)

    def _finish(self, reason: FinishReason) -> None:
        """End the sequence, letting out text that was held back for a stop string."""
        text, stopped = self._stops.push(self._text.flush())
        self._pending_text += text if stopped else text + self._stops.flush()
        self.finish_reason = reason

    def _forget_pending(self) -> None:
        self._pending_text = ""
        self._pending_logprobs = []
        self.trace = None
        self._num_emitted = self.num_tokens

    def _take_prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        if not self._prompt_logprobs:
            return None
        taken, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        return taken

    def _summary(self) -> SequenceSummary:
        return SequenceSummary(
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_draft_tokens=self.num_draft_tokens,
            acceptance_histogram=tuple(self.acceptance_histogram),
            num_forwards=self.num_forwards,
            hole_lengths=self._hole_lengths(),
            is_lossless=self.is_lossless,
            num_predicted_tokens=self.num_predicted_tokens,
            num_predicted_accepted=self.num_predicted_accepted,
            holes=self._holes(),
        )

    def _hole_lengths(self) -> tuple[int, ...]:
        is_one_hole = len(self.options.suffixes) == 1  # a stop string may have ended it
        return (self.num_output_tokens,) if is_one_hole else self.hole_lengths

    def _holes(self) -> tuple[str, ...]:
        """The text of each of several holes; one alone is the whole text."""
        lengths, suffixes = self.hole_lengths, self.options.suffixes
        if len(suffixes) < 2 or len(lengths) < len(suffixes):
            return ()
        output = iter(self.output_token_ids)
        holes = [list(islice(output, length)) for length in lengths]
        return hole_texts(self._tokenizer, self.prompt_token_ids, holes, suffixes)
