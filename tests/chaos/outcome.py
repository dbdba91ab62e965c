"""What one client of a chaos run has seen of its job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.chaos.jobs import ChaosJob


@dataclass
class Outcome:
    """What one client has seen of its job."""

    job: ChaosJob
    how: str = "running"  # finished, failed, left, refused, unreachable, cut, resumed, hung
    status: int = 0
    code: str = ""
    job_id: str = ""
    texts: dict[int, str] = field(default_factory=dict)
    indices: list[int] = field(default_factory=list)
    num_resumes: int = 0

    def add(self, choice: int, text: str) -> None:
        self.texts[choice] = self.texts.get(choice, "") + text


def take_body(outcome: Outcome, body: dict[str, Any]) -> None:
    outcome.how, outcome.job_id = "finished", body["id"]
    for choice in body["choices"]:
        outcome.add(choice["index"], choice["text"])
