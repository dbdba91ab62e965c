"""What every table can be told on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """One run of one or more tables."""

    quick: bool = False  # a smoke run: shows that the table works, its figures mean nothing
    rounds: int = 3
    seed: int = 0
    data: Path | None = None  # prompts from a file instead of the generator
    out: Path = RESULTS
    peers: Path | None = None  # where other engines are installed, each in a sub-folder

    @property
    def num_rounds(self) -> int:
        return 1 if self.quick else self.rounds

    @property
    def folder(self) -> Path:
        """Where results go; those of a smoke run never replace real ones."""
        return self.out / "quick" if self.quick else self.out
