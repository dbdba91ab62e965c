"""Table `memory`: which models a mode needs, and what a token of theirs takes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.memory import CASES, ROLES, measure_size, only
from engine.engine_config import EngineConfig, resolve


def test_a_tokens_keys_and_values_are_counted_by_shape(pair: tuple[Path, Path]) -> None:
    verifier, drafter = map(str, pair)
    config = EngineConfig(
        model_path=verifier, drafter_path=drafter, attention="sdpa", max_batch_size=2
    )
    size = measure_size(resolve(config))
    # Layers x heads x (keys and values) x head_dim x bytes of a float32.
    assert size.kv == {"verifier": 3 * 2 * 2 * 16 * 4, "drafter": 1 * 2 * 2 * 16 * 4}
    assert size.at_start > size.weights > 512 * 64 * 4
    without = measure_size(only(resolve(config), CASES["ar"]))
    assert "drafter" not in without.kv
    assert without.weights < size.weights


def test_of_the_models_of_other_modes_none_is_loaded() -> None:
    shipped = resolve(EngineConfig())
    for roles in CASES.values():
        config = resolve(only(shipped, roles))
        paths = (config.model_path, config.drafter_path, config.diffusion_path)
        assert {role for role, path in zip(ROLES, paths, strict=True) if path} == roles
        assert config.tokenizer_path is not None
