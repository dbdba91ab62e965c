"""Model and batch sizes for the two kinds of machine the training runs on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Everything about a pair of models that the machine decides."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 512
    max_length: int = 2048
    drafter_layers: int = 1
    drafter_intermediate_size: int = 768
    block_size: int = 8
    taps: tuple[int, ...] = (1, 4, 6)
    tokens_a_step: int = 4096
    anchors: int = 32  # blocks the drafter learns from in a row of one batch
    muon_lr: float = 0.02
    adam_lr: float = 3e-3


# How often a source is read in an epoch. What a model of this size cannot learn (library code,
# old books) stays out; what it does well, and what is asked of it, is read more than once.
DEFAULT_WEIGHTS = {
    "cpython": 0.0,
    "pd_books": 0.0,
    "sgd_train": 2.0,
    "star": 2.5,
    "tm4": 3.0,
    "tinystories": 4.0,
}

# Rows of this length up to this share of the training: short rows cost less attention, and the
# long ones at the end are what makes a thousand tokens of context work.
ROW_LENGTHS = ((0.5, 256), (0.85, 512), (1.01, 1024))

PRESETS = {
    "tiny": Preset(512, 32, 2, 2, 1, 16, 64, 256, 1, 64, 4, (0, 1), 256, 4),
    "cpu": Preset(),
    "gpu": Preset(
        vocab_size=8192,
        hidden_size=384,
        num_layers=10,
        num_heads=6,
        intermediate_size=1024,
        drafter_layers=2,
        drafter_intermediate_size=1024,
        taps=(1, 4, 8),
        tokens_a_step=32_768,
    ),
}


def row_length(share: float, max_length: int) -> int:
    """Training row length at this share of the budget."""
    length = next(length for until, length in ROW_LENGTHS if share < until)
    return min(length, max_length)
