"""Kubernetes manifests without kubectl: read, put together as kustomize does, told apart."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUSTOMIZATION = "kustomization.yaml"
STAND_IN = "a secret of a decent length"

Manifest = dict[str, Any]


def read(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def kustomizations() -> list[Path]:
    """Return every folder that kustomize can build or include."""
    return sorted(path.parent for path in DEPLOY.rglob(KUSTOMIZATION))


def plain_manifests() -> Iterator[Manifest]:
    """Yield what stands in files of its own, as it stands there."""
    for folder in kustomizations():
        for name in _kustomization(folder).get("resources", []):
            if (folder / name).is_file():
                yield from read(folder / name)


def patched_manifests() -> Iterator[Manifest]:
    """Yield what each component makes of the base, one component at a time."""
    for folder in sorted((KUBERNETES / "components").iterdir()):
        for patch in _kustomization(folder).get("patches", []):
            for manifest in _base():
                if _is_target(patch["target"], manifest):
                    changed = _patched(manifest, yaml.safe_load(patch["patch"]))
                    if changed is not None:
                        yield changed


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def containers_of(manifest: Manifest) -> list[dict[str, Any]]:
    template = manifest.get("spec", {}).get("template", {})
    return list(template.get("spec", {}).get("containers", []))


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    """Return what stands in the manifest, and a stand-in for each secret."""
    return {entry["name"]: entry.get("value", STAND_IN) for entry in container.get("env", [])}


def _kustomization(folder: Path) -> Manifest:
    (content,) = read(folder / KUSTOMIZATION)
    return content


def _base() -> list[Manifest]:
    return [
        manifest
        for name in _kustomization(KUBERNETES / "base")["resources"]
        if (path := KUBERNETES / "base" / name).is_file()
        for manifest in read(path)
    ]


def _is_target(target: dict[str, str], manifest: Manifest) -> bool:
    names = target["name"].strip("()").split("|")
    return manifest["kind"] == target["kind"] and manifest["metadata"]["name"] in names


def _patched(manifest: Manifest, patch: Any) -> Manifest | None:
    if isinstance(patch, list):
        return _apply_operations(manifest, patch)
    if patch.get("$patch") == "delete":
        return None
    return _merge(manifest, patch)


def _merge(old: Any, new: Any) -> Any:
    """Merge as a strategic merge patch does: lists of named things by their names."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _merge(old.get(key), new.get(key, old.get(key))) for key in {**old, **new}}
    is_named = isinstance(new, list) and all(isinstance(x, dict) and "name" in x for x in new)
    if isinstance(old, list) and is_named:
        by_name = {entry["name"]: entry for entry in old}
        for entry in new:
            by_name[entry["name"]] = _merge(by_name.get(entry["name"]), entry)
        return list(by_name.values())
    return new


def _apply_operations(manifest: Manifest, operations: list[dict[str, Any]]) -> Manifest:
    changed = copy.deepcopy(manifest)
    for operation in operations:
        *steps, last = operation["path"].strip("/").split("/")
        place: Any = changed
        for step in steps:
            place = place[int(step) if isinstance(place, list) else step]
        key = int(last) if isinstance(place, list) else last
        assert key in place or isinstance(key, int)
        if operation["op"] == "remove":
            del place[key]
        else:
            place[key] = operation["value"]
    return changed


PLAIN = list(plain_manifests())
PATCHED = list(patched_manifests())
