"""The `dfastllm` command is light, and says what is wrong in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.wire.known_settings import SERVE, settings_of

BLOCK = "import sys\nfor name in {names}: sys.modules[name] = None\n"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_the_command_loads_no_heavy_package() -> None:
    heavy = ("torch", "transformers", "litestar", "rq", "redis", "engine")
    done = run_python(BLOCK.format(names=heavy) + "import worker.cli")
    assert done.returncode == 0, done.stderr


def test_settings_are_checked_without_the_engine() -> None:
    heavy = ("torch", "transformers", "litestar", "engine")
    code = "import worker.settings, worker.supervisor, worker.cpu_threads"
    done = run_python(BLOCK.format(names=heavy) + code)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_setting_under_its_flag_and_its_name() -> None:
    text = run_cli("serve", "--help").stdout
    for setting in settings_of(SERVE):
        assert f"{setting.flag} " in text, setting.name


def test_a_misspelt_flag_is_refused() -> None:
    done = run_cli("serve", "--prot", "8081")
    assert done.returncode == 2
    assert "--prot" in done.stderr


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("train", "engine.training"),
        ("train-drafter", "engine.training.train_drafter"),
        ("eval-drafter", "engine.training.eval_drafter"),
        ("convert-drafter", "engine.training.convert_drafter"),
        ("plot", "engine.training.plot"),
    ],
)
def test_training_commands_become_their_module_with_all_flags(command: str, module: str) -> None:
    code = (
        "import os, sys, worker.cli\n"
        "os.execv = lambda path, arguments: sys.exit(' '.join(arguments[1:]))\n"
        f"sys.argv = ['dfastllm', {command!r}, '--threads', '1', '--help']\n"
        "worker.cli.main()"
    )
    assert run_python(code).stderr.strip() == f"-P -m {module} --threads 1 --help"


@pytest.mark.parametrize(
    ("part", "module"), [("serve", "worker.cli serve"), ("api", "api"), ("worker", "worker")]
)
def test_flags_with_secrets_leave_the_command_line_before_anything_runs(
    part: str, module: str
) -> None:
    code = (
        "import os, sys, worker.cli\n"
        "os.execv = lambda path, arguments: sys.exit(' '.join(arguments[1:]))\n"
        f"sys.argv = ['dfastllm', {part!r}, '--redis-url', 'redis://:s3cr3t@h/0']\n"
        "worker.cli.main()"
    )
    assert run_python(code).stderr.strip() == f"-P -m {module}"


def test_train_drafter_really_starts() -> None:
    done = run_cli("train-drafter", "--verifier", "no/such/model", "--data", "none.jsonl")
    assert done.returncode == 2
    assert "--verifier: no/such/model is no model folder" in done.stderr
