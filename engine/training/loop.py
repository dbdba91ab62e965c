"""The training loop of both models: budget, checkpoints, log. A killed run goes on where it was."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.training.optimizer import OptimizerPair

GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes of this machine, or steps where runs must be repeatable."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either minutes or steps")
        if (self.steps or self.minutes or 0) <= 0:
            raise ValueError("a training budget must be more than nothing")

    def share(self, step: int, elapsed_s: float) -> float:
        """The part of the budget that is spent, 0 to 1 and beyond."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return elapsed_s / (60 * self.minutes)


class Task(Protocol):
    """What is trained: a model, its loss on the next batch, and where the data stands."""

    @property
    def model(self) -> nn.Module: ...

    def loss(self, share: float) -> tuple[Tensor, int]:
        """The loss of the next micro-batch and the tokens it read; moves the data on."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """What a run has spent so far."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0


class Fit:
    """One run of a task in a folder, which gets `checkpoint.pt` and `log.jsonl`."""

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerPair,
        budget: Budget,
        folder: Path,
        accumulate: int = 1,
        checkpoint_s: float = 180.0,
        log_every: int = 10,
    ) -> None:
        self.task, self.optimizer, self.budget = task, optimizer, budget
        self.folder, self.accumulate = folder, accumulate
        self.checkpoint_s, self.log_every = checkpoint_s, log_every
        self.progress = Progress()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def share(self) -> float:
        return self.budget.share(self.progress.step, self.progress.elapsed_s)

    def run(self, stop_after: int | None = None) -> Progress:
        """Train to the end of the budget, or for `stop_after` steps of this call."""
        self.resume()
        bar = tqdm(desc=self.folder.name, initial=self.progress.step, total=self.budget.steps)
        last, saved, done, recent = time.monotonic(), time.monotonic(), 0, 0.0
        while self.share < 1 and done != stop_after:
            value = self._step()
            done += 1
            recent = value if done == 1 else 0.95 * recent + 0.05 * value
            now = time.monotonic()
            self.progress.elapsed_s += now - last
            last = now
            bar.update()
            if self.progress.step % self.log_every == 0:
                bar.set_postfix(loss=f"{recent:.3f}", done=f"{self.share:.1%}", refresh=False)
                self._log(value)
            if now - saved > self.checkpoint_s:
                self.save()
                saved = now
        bar.close()
        self.save()
        return self.progress

    def _step(self) -> float:
        share, total = self.share, 0.0
        for _ in range(self.accumulate):
            loss, tokens = self.task.loss(share)
            (loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / self.accumulate
            self.progress.tokens += tokens
        nn.utils.clip_grad_norm_(self.task.model.parameters(), GRADIENT_NORM)
        self.optimizer.step(share)
        self.progress.step += 1
        return total

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state(),
            "progress": vars(self.progress),
            "random": torch.get_rng_state(),
        }
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        part.replace(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.task.restore(state["task"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"])

    def _log(self, loss: float) -> None:
        line = {**vars(self.progress), "loss": round(loss, 5), "share": round(self.share, 5)}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
