"""Stage 7: the model card, written from what the run recorded and from what the models answer."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.models.dflash import DFlashDrafter


def write_card(
    out: Path, run_folder: Path, verifier: Any, drafter: DFlashDrafter, tokenizer: Tokenizer
) -> None:
    raise NotImplementedError
