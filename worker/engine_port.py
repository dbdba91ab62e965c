"""The engine as the worker sees it: `engine.build` makes the real one, tests a fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from engine.request.options import NO_OPTIONS, GenerationOptions
from engine.request.outputs import StepOutput
from engine.request.sampling_params import SamplingParams


class TokenizerPort(Protocol):
    """Text to tokens and back. Called from the I/O thread while the engine steps."""

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]: ...

    def encode_continuation(self, text: str, param: str) -> list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]: ...

    @property
    def tool_syntax(self) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def describe(self) -> dict[str, Any]:
        """Return what `tokenizer_config.json` says that clients may need."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class EngineSequence(Protocol):
    """A sequence, opaque to the worker."""

    @property
    def sequence_id(self) -> str: ...
    @property
    def mode(self) -> str: ...


class EnginePort(Protocol):
    """Continuous batching, a step at a time.

    `add`, `abort` and `step` belong to the engine thread. `make_sequence` and the tokenizer are
    called from the I/O thread at any time and must not touch what a running step uses.
    """

    @property
    def model_name(self) -> str: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def max_batch_size(self) -> int: ...
    @property
    def modes(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tokenizer(self) -> TokenizerPort: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...

    def make_sequence(
        self,
        sequence_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        prompt_index: int = 0,
        choice: int = 0,
        mode: str | None = None,
        options: GenerationOptions = NO_OPTIONS,
        cache_salt: str = "",
        replay: Sequence[int] = (),
    ) -> EngineSequence:
        """Check a request and build its sequence; raises InvalidRequestError, changes nothing.

        `replay` is output an earlier attempt already sent: it counts as output, and only what
        follows is emitted.
        """
        ...

    # Any: an engine takes only sequences of its own making, which no protocol can say.
    def add(self, sequence: Any) -> None: ...

    def abort(self, sequence_id: str) -> None:
        """Free the sequence's place and pages at once; an unknown id is no fault."""
        ...

    def step(self) -> list[StepOutput]: ...

    def metrics(self) -> dict[str, float]: ...
