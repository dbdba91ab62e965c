"""compose.yaml fits its specification, our settings, and what an operator may expect of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from api.settings import load_settings
from tests.deploy.manifests import PLAIN, ROOT, containers_of, environment_of, name_of
from worker.settings import read_settings
from worker.wire.known_settings import API, KNOWN, PREFIX, WORKER, settings_of
from worker.wire.tracing import are_traces_wanted

SERVICES = {"redis", "api", "worker", "rq-dashboard", "prometheus", "grafana"}
FILES = ("compose.yaml", "compose.gpu.yaml")
REQUIRED = {"REDIS_PASSWORD", "VDIFF_API_KEY", "GRAFANA_PASSWORD"}
READERS = {"api": load_settings, "worker": read_settings}

_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")
_EXAMPLE_LINE = re.compile(r"#?([A-Z_]+)=(.*)")
_SCHEMA = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"


def _text(name: str) -> str:
    return (ROOT / name).read_text()


def _example() -> dict[str, str]:
    """Return every variable of .env.example, with those that are commented out."""
    lines = _text(".env.example").splitlines()
    return {match[1]: match[2] for line in lines if (match := _EXAMPLE_LINE.fullmatch(line))}


def _services(given: dict[str, str], name: str = "compose.yaml") -> dict[str, Any]:
    """Return the services with their variables filled in from `given` and the defaults."""
    text = _VARIABLE.sub(lambda match: given.get(match[1]) or match[3] or "", _text(name))
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def _compose_command() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is not None:
            done = subprocess.run([*command, "version"], capture_output=True, check=False)
            if done.returncode == 0:
                return command
    return None


def _each(flag: str, values: tuple[str, ...]) -> list[str]:
    return [part for value in values for part in (flag, value)]


def _environment(service: dict[str, Any]) -> dict[str, str]:
    values = service["environment"].items()
    return {name: "" if value is None else str(value) for name, value in values}


def _seconds(duration: str) -> float:
    assert duration.endswith("s"), duration
    return float(duration.removesuffix("s"))


@pytest.mark.parametrize("name", FILES)
def test_the_file_fits_the_compose_specification(name: str) -> None:
    schema = json.loads(_SCHEMA.read_text())
    jsonschema.validate(yaml.safe_load(_text(name)), schema)
    filled = yaml.safe_load(_text(name)) | {"services": _services({}, name)}
    jsonschema.validate(filled, schema)
    filled["services"]["worker"]["comand"] = ["worker"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(filled, schema)


def test_compose_itself_takes_the_files_and_refuses_them_without_secrets(tmp_path: Path) -> None:
    compose = _compose_command()
    if compose is None:
        pytest.skip("no Docker Compose here; the files were held against its specification")
    secrets = "".join(f"{name}=secret\n" for name in REQUIRED)
    for text, is_complete in ((secrets, True), (_text(".env.example"), False)):
        (tmp_path / "env").write_text(text)
        done = subprocess.run(
            [*compose, "--env-file", str(tmp_path / "env"), *_each("-f", FILES), "config", "-q"],
            cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) is is_complete, done.stderr
        assert is_complete or "set it in .env" in done.stderr


def test_everything_is_watched_kept_alive_limited_and_locked_up() -> None:
    services = _services({})
    assert set(services) == SERVICES
    for name, service in services.items():
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        if name != "redis":
            conditions = [one["condition"] for one in service["depends_on"].values()]
            assert conditions == ["service_healthy"], name


def test_nothing_is_published_beyond_loopback_unless_asked_for() -> None:
    services = _services({})
    published = {name: ports for name in services if (ports := services[name].get("ports"))}
    assert set(published) == SERVICES - {"redis", "worker"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    (api,) = _services({"API_ADDRESS": "0.0.0.0"})["api"]["ports"]
    assert api.startswith("0.0.0.0:")


def test_secrets_must_be_given_and_none_stands_in_a_file() -> None:
    required = {match[1] for match in _VARIABLE.finditer(_text("compose.yaml")) if match[2] == "?"}
    assert required == REQUIRED
    assert all(_example()[name] == "" for name in REQUIRED)
    ignored = _text(".gitignore").splitlines()
    assert ".env" in ignored and _text(".dockerignore").splitlines()[1] == "*"


def test_every_variable_of_the_files_is_in_the_example_and_the_other_way_round() -> None:
    named = {match[1] for name in FILES for match in _VARIABLE.finditer(_text(name))}
    assert set(_example()) == named


@pytest.mark.parametrize("part", [API, WORKER])
@pytest.mark.parametrize("example", [False, True])
def test_the_part_takes_its_environment(part: str, example: bool) -> None:
    given = (_example() if example else {}) | dict.fromkeys(REQUIRED, "secret")
    environment = _environment(_services(given)[part])
    READERS[part](environment)
    ours = {name for name in environment if name.startswith(PREFIX)}
    assert ours <= {setting.name for setting in settings_of(part)}
    assert are_traces_wanted(environment) is example


def test_a_part_on_kubernetes_takes_its_environment() -> None:
    for manifest in PLAIN:
        part = manifest["metadata"]["name"]
        if manifest["kind"] == "Deployment" and part in READERS:
            (container,) = containers_of(manifest)
            environment = environment_of(container)
            ours = {name: text for name, text in environment.items() if name.startswith(PREFIX)}
            assert set(ours) <= {setting.name for setting in settings_of(part)}, name_of(manifest)
            READERS[part](ours)


def test_image_and_example_name_no_setting_that_nobody_reads() -> None:
    in_image = set(re.findall(rf"\b{PREFIX}\w+", _text("Dockerfile")))
    assert in_image == {"VDIFF_FILES_DIR"}
    assert {name for name in in_image | set(_example()) if name.startswith(PREFIX)} <= set(KNOWN)


def test_a_stopping_worker_has_the_time_to_drain() -> None:
    for given in ({}, _example()):
        worker = _services(given)["worker"]
        drain_s = float(worker["environment"]["VDIFF_DRAIN_TIMEOUT"])
        assert _seconds(worker["stop_grace_period"]) >= drain_s + 10


def test_redis_keeps_its_log_and_never_evicts() -> None:
    lines = set(_text("deploy/redis/valkey.conf").splitlines())
    assert {"appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction"} <= lines
    limit = _services({})["redis"]["deploy"]["resources"]["limits"]["memory"]
    assert (limit, "maxmemory 1gb" in lines) == ("2g", True)


def test_the_image_copies_what_is_there_and_what_docker_may_see() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", _text("Dockerfile"), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    allowed = {line[1:] for line in _text(".dockerignore").splitlines() if line.startswith("!")}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)
