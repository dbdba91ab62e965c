"""The engine loop on its own thread: sequences in, outputs out, never a wait for Redis."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engine.request.outputs import StepOutput
from worker.engine_port import EnginePort, EngineSequence

log = logging.getLogger("worker.engine")

# A poisonous job fails as often as it is retried; a broken device fails every step there is.
MAX_FAULTS_IN_A_ROW = 6


@dataclass(frozen=True, slots=True)
class Abort:
    """Drop a sequence: nobody waits for it any more."""

    sequence_id: str


@dataclass(frozen=True, slots=True)
class EngineFault:
    """A step failed: these sequences are gone, and if `is_fatal` the engine is too."""

    message: str
    sequence_ids: frozenset[str]
    is_fatal: bool


Command = EngineSequence | Abort


class EngineThread(threading.Thread):
    """Owns the engine's `add`, `abort` and `step`; everybody else posts and takes."""

    def __init__(self, engine: EnginePort, on_output: Callable[[bool], object]) -> None:
        """`on_output` is told whether it is urgent: a sequence's first word, or its last."""
        super().__init__(name="engine", daemon=True)
        self._engine = engine
        self._on_output = on_output
        self._inbox: deque[Command] = deque()
        self._outbox: deque[StepOutput | EngineFault] = deque()
        self._changed = threading.Condition()
        self._is_paused = False
        self._is_stopping = False
        self._sequence_ids: set[str] = set()
        self._silent_ids: set[str] = set()  # of these, those without a word so far
        self._faults_in_a_row = 0
        self._step_began: float | None = None

    @property
    def step_age_s(self) -> float:
        """How long the step has taken that runs now; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def post(self, commands: Iterable[Command]) -> None:
        """Hand over sequences to run and aborts, to take effect in order before the next step."""
        with self._changed:
            self._inbox.extend(commands)
            self._changed.notify()

    @property
    def has_output(self) -> bool:
        return bool(self._outbox)

    def take(self) -> list[StepOutput | EngineFault]:
        """Return what has happened since the last call."""
        return [self._outbox.popleft() for _ in range(len(self._outbox))]

    def pause(self, is_paused: bool) -> None:
        """Stop stepping, or go on: the way to say that nobody can take more output."""
        with self._changed:
            self._is_paused = is_paused
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def run(self) -> None:
        is_alive = True
        while is_alive and self._wait_for_work():
            self._step_began = time.monotonic()
            try:
                self._advance()
            except Exception as error:  # boundary: the engine; a fault ends only its batch
                is_alive = self._recover(error)
            self._step_began = None

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(self._has_reason_to_wake)
            return not self._is_stopping

    def _has_reason_to_wake(self) -> bool:
        return self._is_stopping or bool(self._inbox) or self._may_step

    @property
    def _may_step(self) -> bool:
        return bool(self._sequence_ids) and not self._is_paused

    def _advance(self) -> None:
        while self._inbox:
            self._apply(self._inbox.popleft())
        if self._may_step:
            self._put(self._engine.step())

    def _apply(self, command: Command) -> None:
        if isinstance(command, Abort):
            self._forget(command.sequence_id)
            self._engine.abort(command.sequence_id)
        else:
            self._sequence_ids.add(command.sequence_id)
            self._silent_ids.add(command.sequence_id)
            self._engine.add(command)

    def _put(self, outputs: list[StepOutput]) -> None:
        self._faults_in_a_row = 0
        if not outputs:
            return
        is_urgent = False
        for output in outputs:
            if output.sequence_id in self._silent_ids:
                is_urgent = True
                if output.text:
                    self._silent_ids.discard(output.sequence_id)
            if output.finish_reason is not None:
                is_urgent = True
                self._forget(output.sequence_id)
        self._outbox.extend(outputs)
        self._on_output(is_urgent)

    def _forget(self, sequence_id: str) -> None:
        self._sequence_ids.discard(sequence_id)
        self._silent_ids.discard(sequence_id)

    def _recover(self, error: Exception) -> bool:
        """Clear the engine after a fault; return whether it can go on."""
        log.error("engine step failed with %d sequences", len(self._sequence_ids), exc_info=error)
        self._faults_in_a_row += 1
        lost = frozenset(self._sequence_ids)
        self._sequence_ids.clear()
        self._silent_ids.clear()
        can_go_on = self._abort_all(lost) and self._faults_in_a_row < MAX_FAULTS_IN_A_ROW
        # The message reaches clients: the kind of the fault, none of its words.
        self._outbox.append(EngineFault(type(error).__name__, lost, not can_go_on))
        self._on_output(True)
        return can_go_on

    def _abort_all(self, sequence_ids: frozenset[str]) -> bool:
        try:
            for sequence_id in sequence_ids:
                self._engine.abort(sequence_id)
        except Exception:  # boundary: the engine; if it cannot even let go, the process must end
            log.exception("the engine cannot drop its sequences")
            return False
        return True
