"""Reading checkpoints: shards, number formats, memory, and what is refused before anything runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.models import memory
from engine.models.causal_lm import UnsupportedModelError, load_causal_lm
from engine.models.checkpoint import read_tensors, tensor_files, weight_bytes
from engine.models.diffusion_lm import load_diffusion_lm
from tests.engine.tiny_families import LLADA, MASK, Tensors
from tests.engine.tiny_models import tiny_qwen3

CPU = torch.device("cpu")


def shard(folder: Path, tensors: Tensors) -> Path:
    """As Hugging Face writes a checkpoint that is too large for one file."""
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    parts = dict(zip(files, (names[::2], names[1::2]), strict=True))
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("on_disk", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_shards_of_any_format_load_in_the_wanted_one(
    on_disk: torch.dtype, wanted: torch.dtype, tmp_path: Path
) -> None:
    tensors = LLADA.tensors(dtype=on_disk)
    folder = shard(LLADA.save(tmp_path, tensors), tensors)
    model = load_diffusion_lm(folder, dtype=wanted, device=CPU).backbone
    assert {p.dtype for p in model.model.parameters()} == {wanted}
    ids = torch.arange(12) % MASK
    visible = torch.ones(12, 12, dtype=torch.bool)
    found = model.eager_logits(ids[None], visible)[0].float()
    in_float = {name: tensor.to(wanted).float() for name, tensor in tensors.items()}
    expected = LLADA.logits(in_float, ids, visible)
    limit = 1e-5 if wanted is torch.float32 else 6e-2
    assert (found - expected).abs().max() <= limit * expected.abs().max()
    assert (
        weight_bytes(folder, wanted) == sum(t.numel() for t in tensors.values()) * wanted.itemsize
    )


def test_a_causal_lm_in_shards_loads_as_well(tmp_path: Path) -> None:
    model = tiny_qwen3()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(tensor_files(tmp_path)) > 2
    loaded = load_causal_lm(tmp_path, dtype=torch.float32, device=CPU)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_weights_are_mapped_and_not_read_before_they_are_used(tmp_path: Path) -> None:
    save_file({"a": torch.arange(4.0)}, tmp_path / "model.safetensors")
    first, second = read_tensors(tmp_path), read_tensors(tmp_path)
    assert torch.equal(first["a"], second["a"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_a_pickle_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = LLADA.save(tmp_path, LLADA.tensors())
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UnsupportedModelError, match=f"{name}, a pickle.*safetensors"):
        load_diffusion_lm(folder, dtype=torch.float32, device=CPU)
    tiny_qwen3().config.save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match=f"{name}, a pickle"):
        load_causal_lm(folder, dtype=torch.float32, device=CPU)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    tensors = LLADA.tensors()
    folder = shard(LLADA.save(tmp_path, tensors), tensors)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 shards: model-00002-of-00002"):
        load_diffusion_lm(folder, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", 3])
def test_an_index_that_leads_out_of_the_folder_is_refused(name: object, tmp_path: Path) -> None:
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(UnsupportedModelError, match="no file beside it"):
        tensor_files(tmp_path)


@pytest.mark.parametrize("content", [b"no tensors at all", b"\x08\0\0\0\0\0\0\0not json", b""])
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    folder = LLADA.save(tmp_path, LLADA.tensors())
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors"):
        load_diffusion_lm(folder, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_that_is_no_object_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, "utf-8")
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        load_causal_lm(tmp_path, dtype=torch.float32, device=CPU)


def test_what_memory_a_model_needs_is_said_before_it_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_qwen3().save_pretrained(tmp_path)
    caplog.set_level(logging.INFO, "dfastllm.engine")
    load_causal_lm(tmp_path, dtype=torch.float32, device=CPU)
    said = [record.getMessage() for record in caplog.records]
    assert "needs 0.00 GiB on cpu" in said[0] and "loaded in" in said[-1]


def write_cgroup(root: Path, limit: str, used: int, cached: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "memory.max").write_text(f"{limit}\n")
    (root / "memory.current").write_text(f"{used}\n")
    (root / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_a_model_that_the_cgroup_has_no_room_for_is_refused_with_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("1:cpu:/elsewhere\n0::/pod/worker\n")
    monkeypatch.setattr(memory, "CGROUP_ROOT", root)
    monkeypatch.setattr(memory, "OWN_CGROUP", own)
    write_cgroup(root / "pod" / "worker", "max", 0, 0)
    write_cgroup(root / "pod", str(3 << 20), 1 << 20, 1 << 19)
    assert memory.free_host_memory() == (2 << 20) + (1 << 19)
    folder = tmp_path / "model"
    tiny_qwen3(vocab_size=1 << 14).save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match=r"does not fit: .* GiB, the host has 0.00 GiB"):
        load_causal_lm(folder, dtype=torch.float32, device=CPU)
    write_cgroup(root / "pod", str(64 << 20), 1 << 20, 1 << 19)
    load_causal_lm(folder, dtype=torch.float32, device=CPU)


def test_where_nothing_is_known_of_memory_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "none")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.free_host_memory() is None
    memory.claim_memory(1 << 60, CPU, "anything")
