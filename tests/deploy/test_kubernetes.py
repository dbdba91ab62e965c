"""The manifests are what Kubernetes and KEDA take, and say what our settings and code need."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication

from tests.deploy.manifests import (
    KUBERNETES,
    KUSTOMIZATION,
    PATCHED,
    PLAIN,
    Manifest,
    containers_of,
    environment_of,
    kustomizations,
    name_of,
    read,
)
from worker.wire import keys

VERSIONS = ("1.30", kubernetes_validate.latest_version())
KEDA = {"ScaledObject": ScaledObject, "TriggerAuthentication": TriggerAuthentication}
# What KEDA 2.16's documentation of its scalers lists, as far as it concerns us.
TRIGGER_METADATA = {
    "redis": {
        "address", "username", "listName", "listLength", "activationListLength", "enableTLS",
        "unsafeSsl", "databaseIndex",
    },
    "prometheus": {
        "serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues",
    },
}  # fmt: skip
EVERY = [pytest.param(manifest, id=name_of(manifest)) for manifest in PLAIN + PATCHED]
OVERLAYS = [folder for folder in kustomizations() if folder.parent.name == "overlays"]


def _only(kind: str, name: str, manifests: list[Manifest] = PLAIN) -> Manifest:
    (found,) = [one for one in manifests if name_of(one) == f"{kind}/{name}"]
    return found


def _check(manifest: Manifest) -> None:
    """Raise what the schema's own validator raises."""
    if manifest["kind"] in KEDA:
        understood = KEDA[manifest["kind"]].model_validate(manifest)
        # The models drop what they do not know.
        assert understood.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("manifest", EVERY)
def test_a_manifest_fits_the_published_schema(manifest: Manifest) -> None:
    _check(manifest)


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("Deployment", "worker", "spec"),
        ("Deployment", "api", "spec"),
        ("ScaledObject", "worker", "spec"),
    ],
)
def test_a_misspelt_field_does_not_fit(kind: str, name: str, path: str) -> None:
    manifest = yaml.safe_load(yaml.safe_dump(_only(kind, name)))
    manifest[path]["replicaz"] = 1
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        _check(manifest)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_what_kustomize_builds_fits_as_well(folder: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here; each manifest and patch was checked by itself")
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    built = list(yaml.safe_load_all(done.stdout))
    for manifest in built:
        _check(manifest)
    counts = Counter(name_of(manifest) for manifest in built)
    assert "Deployment/worker" in counts and max(counts.values()) == 1


def test_kustomizations_name_every_file_beside_them_and_none_that_is_missing() -> None:
    for folder in kustomizations():
        (content,) = read(folder / KUSTOMIZATION)
        named = content.get("resources", []) + content.get("components", [])
        missing = [name for name in named if not (folder / name).exists()]
        assert not missing, folder
        if folder.is_relative_to(KUBERNETES):
            beside = {path.name for path in folder.glob("*.yaml")} - {KUSTOMIZATION}
            assert beside <= set(named), folder


def test_a_workers_pod_outlives_its_drain() -> None:
    spec = _only("Deployment", "worker")["spec"]["template"]["spec"]
    drain_s = float(environment_of(spec["containers"][0])["VDIFF_DRAIN_TIMEOUT"])
    assert spec["terminationGracePeriodSeconds"] >= drain_s + 10


def test_no_container_may_become_root_or_write_to_its_image() -> None:
    for manifest in PLAIN:
        for container in containers_of(manifest):
            pod = manifest["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"], name_of(manifest)
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}


def test_dashboards_listen_on_loopback_alone() -> None:
    for name, variable in (
        ("rq-dashboard", "RQ_DASHBOARD_BIND"),
        ("grafana", "GF_SERVER_HTTP_ADDR"),
    ):
        (container,) = containers_of(_only("Deployment", name))
        assert environment_of(container)[variable] == "127.0.0.1"
        assert not [one for one in PLAIN if name_of(one) == f"Service/{name}"]


def test_no_manifest_holds_a_secret() -> None:
    assert not [manifest for manifest in PLAIN if manifest["kind"] == "Secret"]
    for manifest in PLAIN + PATCHED:
        for container in containers_of(manifest):
            for entry in container.get("env", []):
                if "PASSWORD" in entry["name"] or entry["name"] == "VDIFF_API_KEY":
                    assert entry["valueFrom"]["secretKeyRef"]["name"] == "dfastllm"


def test_the_autoscaler_looks_at_every_queue_of_the_model() -> None:
    triggers = _only("ScaledObject", "worker")["spec"]["triggers"]
    lists = {trigger["metadata"].get("listName") for trigger in triggers} - {None}
    assert lists == {keys.queue(name) for name in keys.queue_names("dfastllm-embedded")}


def test_a_trigger_has_no_parameter_that_its_scaler_does_not_know() -> None:
    triggers: list[dict[str, Any]] = _only("ScaledObject", "worker")["spec"]["triggers"]
    for trigger in triggers:
        assert set(trigger["metadata"]) <= TRIGGER_METADATA[trigger["type"]]
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
