"""Settings: read by name, refused by name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.build import EMBEDDED, resolve
from engine.entropy_controller import EntropyConfig
from engine.request.options import NO_OPTIONS, GenerationOptions
from worker.engine_config import engine_config
from worker.settings import SettingsError, WorkerSettings, changed_settings, read_settings
from worker.wire.known_settings import KNOWN, WORKER, settings_of


def test_nothing_set_gives_the_defaults() -> None:
    assert read_settings({"PATH": "/bin"}) == WorkerSettings()


def test_values_are_read_in_their_types() -> None:
    settings = read_settings(
        {
            "VDIFF_MAX_BATCH_SIZE": "3",
            "VDIFF_PREFIX_CACHE": "false",
            "VDIFF_LEASE": "1.5",
            "VDIFF_MAX_MODEL_LEN": "auto",
            "VDIFF_DTYPE": "auto",
            "VDIFF_MODEL": "",
        }
    )
    assert settings == WorkerSettings(max_batch_size=3, prefix_cache=False, lease=1.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VDIFF_MAX_BATCH_SIZE", "0"),
        ("VDIFF_MAX_BATCH_SIZE", "many"),
        ("VDIFF_DTYPE", "float12"),
        ("VDIFF_HYBRID_MODE", "best"),
        ("VDIFF_LEASE", "0"),
        ("VDIFF_COMPILE", "perhaps"),
        ("VDIFF_REDIS_URL", "localhost"),
        ("VDIFF_PREFIX_CACHE_REDIS_URL", "localhost"),
        ("VDIFF_PREFIX_CACHE_TTL", "0"),
        ("VDIFF_PREFIX_CACHE_HOST_MB", "-1"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read_settings({name: value})


@pytest.mark.parametrize("name", ["PREFIX_CACHE_HOST_MB", "PREFIX_CACHE_REDIS_MB"])
def test_a_lower_floor_needs_the_prefix_cache(name: str) -> None:
    with pytest.raises(SettingsError, match=f"VDIFF_{name}.*VDIFF_PREFIX_CACHE=false"):
        read_settings({f"VDIFF_{name}": "8", "VDIFF_PREFIX_CACHE": "false"})


def test_an_unknown_name_is_refused_with_a_guess_at_what_was_meant() -> None:
    with pytest.raises(
        SettingsError, match=r"VDIFF_MAX_BATCHSIZE.*did you mean VDIFF_MAX_BATCH_SIZE"
    ):
        read_settings({"VDIFF_MAX_BATCHSIZE": "3"})


def test_entropy_thresholds_reach_the_engine_and_mean_nothing_without_the_switch() -> None:
    assert engine_config(WorkerSettings()).entropy is None
    environ = {"VDIFF_ADAPTIVE_ENTROPY": "true", "VDIFF_ENTROPY_HIGH": "3.5"}
    assert engine_config(read_settings(environ)).entropy == EntropyConfig(high=3.5)
    with pytest.raises(SettingsError, match="VDIFF_ENTROPY_HIGH: means nothing without"):
        read_settings({"VDIFF_ENTROPY_HIGH": "3.5"})
    environ["VDIFF_ENTROPY_LOW"] = "4"
    with pytest.raises(SettingsError, match=r"VDIFF_ENTROPY_LOW.*got 3\.5"):
        engine_config(read_settings(environ))


@pytest.mark.parametrize(
    ("given", "attention"), [("auto", "auto"), ("true", "flash"), ("false", "sdpa")]
)
def test_flash_attention_is_demanded_or_refused_or_left_to_the_engine(
    given: str, attention: str
) -> None:
    config = engine_config(read_settings({"VDIFF_FLASH_ATTENTION": given}))
    assert config.attention == attention


def test_compilation_and_8_bits_reach_the_engine_and_are_off_by_default() -> None:
    names = {"VDIFF_COMPILE": "true", "VDIFF_USE_8BIT": "true"}
    config = engine_config(read_settings(names))
    assert (config.compile, config.use_8bit) == (True, True)
    plain = engine_config(read_settings({}))
    assert (plain.compile, plain.use_8bit) == (False, False)


def test_defaults_of_the_knobs_become_the_engines() -> None:
    environ = {
        "VDIFF_HYBRID_DRAFT_SIZE": "5",
        "VDIFF_DIFFUSION_STEPS": "6",
        "VDIFF_BLOCK_SIZE": "7",
        "VDIFF_APD_MAX_PARALLEL": "8",
        "VDIFF_APD_THRESHOLD": "0.5",
    }
    assert engine_config(read_settings(environ)).options == GenerationOptions(
        draft_length=5,
        denoising_steps=6,
        block_length=7,
        apd_max_parallel=8,
        apd_threshold=0.5,
    )
    assert engine_config(WorkerSettings()).options == NO_OPTIONS


def test_apd_is_offered_unless_it_is_switched_off() -> None:
    assert engine_config(WorkerSettings()).disabled_modes == frozenset()
    off = read_settings({"VDIFF_ENABLE_APD": "false"})
    assert engine_config(off).disabled_modes == {"apd"}
    with pytest.raises(SettingsError, match="VDIFF_HYBRID_MODE=apd and VDIFF_ENABLE_APD=false"):
        read_settings({"VDIFF_ENABLE_APD": "false", "VDIFF_HYBRID_MODE": "apd"})


@pytest.mark.parametrize(
    ("environ", "roles"),
    [
        ({}, ("verifier", "drafter", "diffusion")),
        ({"VDIFF_MODEL": "diffusion"}, ("diffusion",)),
        ({"VDIFF_MODEL": "verifier"}, ("verifier",)),
        ({"VDIFF_AR_VERIFIER_MODEL": "verifier"}, ("verifier",)),
        (
            {"VDIFF_AR_VERIFIER_MODEL": "verifier", "VDIFF_MODEL": "diffusion"},
            ("verifier", "diffusion"),
        ),
        (
            {"VDIFF_AR_VERIFIER_MODEL": "verifier", "VDIFF_MODEL": "drafter"},
            ("verifier", "drafter"),
        ),
    ],
)
def test_models_are_told_apart_by_what_they_are(
    environ: dict[str, str], roles: tuple[str, ...]
) -> None:
    folders = {name: str(EMBEDDED / folder) for name, folder in environ.items()}
    config = resolve(engine_config(read_settings(folders)))
    found = {
        "verifier": config.model_path,
        "drafter": config.drafter_path,
        "diffusion": config.diffusion_path,
    }
    assert {role: Path(path).name for role, path in found.items() if path} == dict(
        zip(roles, roles, strict=True)
    )


def test_a_wrong_address_is_refused_without_showing_its_password() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"VDIFF_REDIS_URL": "http://:secret@host"})
    assert "secret" not in str(caught.value)


def test_the_log_shows_what_was_changed_but_no_address() -> None:
    settings = read_settings(
        {
            "VDIFF_REDIS_URL": "redis://:secret@host",
            "VDIFF_PREFIX_CACHE_REDIS_URL": "redis://:secret@another",
            "VDIFF_PREFIX_CACHE_SECRET": "secret",
            "VDIFF_LEASE": "9",
        }
    )
    assert changed_settings(settings) == {"lease": 9.0}


def test_the_table_of_names_lists_just_what_the_worker_reads() -> None:
    fields = {f"VDIFF_{field.name.upper()}" for field in msgspec.structs.fields(WorkerSettings)}
    assert {setting.name for setting in settings_of(WORKER)} == fields


def test_the_help_states_the_defaults_that_hold() -> None:
    for field in msgspec.structs.fields(WorkerSettings):
        stated = KNOWN[f"VDIFF_{field.name.upper()}"].default
        if isinstance(field.default, bool):
            assert stated == str(field.default).lower(), field.name
        elif isinstance(field.default, int | float):
            assert float(stated) == field.default, field.name


REACHING_THE_ENGINE = {
    "CPU_THREADS": "3",
    "MODEL": "/some/model",
    "AR_VERIFIER_MODEL": "/some/verifier",
    "TOKENIZER": "/some/tokenizer",
    "MODEL_NAME": "mine",
    "MAX_MODEL_LEN": "64",
    "DTYPE": "bfloat16",
    "DEVICE": "cpu",
    "HYBRID_ENABLED": "false",
    "HYBRID_MODE": "spec_diff",
    "HYBRID_DRAFT_SIZE": "3",
    "HYBRID_MAX_DRAFT": "5",
    "CPU_KERNELS": "false",
    "COMPILE": "true",
    "FLASH_ATTENTION": "false",
    "USE_8BIT": "true",
    "ENABLE_BATCHING": "false",
    "MAX_BATCH_SIZE": "3",
    "MAX_STEP_TOKENS": "32",
    "KV_CACHE_MB": "7",
    "PREFIX_CACHE": "false",
    "PREFIX_CACHE_HOST_MB": "9",
    "ADAPTIVE_ENTROPY": "true",
    "DIFFUSION_STEPS": "4",
    "BLOCK_SIZE": "4",
    "ENABLE_APD": "false",
    "APD_MAX_PARALLEL": "2",
    "APD_THRESHOLD": "0.5",
}
OF_THE_PROCESS = {
    *("REDIS_URL", "RESULT_TTL", "FAILURE_TTL", "LOG_LEVEL", "LOG_FORMAT"),
    *("LEASE", "DRAIN_TIMEOUT", "OUTAGE_BUFFER_MB", "OVERDUE_AFTER", "OVERDUE_SHARE", "BURST"),
    *("PREFIX_CACHE_REDIS_MB", "PREFIX_CACHE_REDIS_URL", "STREAM_INTERVAL"),
    *("PREFIX_CACHE_TTL", "PREFIX_CACHE_SECRET"),
}


@pytest.mark.parametrize(("name", "value"), REACHING_THE_ENGINE.items())
def test_a_setting_of_the_engine_changes_what_is_built(name: str, value: str) -> None:
    plain = engine_config(WorkerSettings())
    assert engine_config(read_settings({f"VDIFF_{name}": value})) != plain


def test_no_setting_of_a_worker_is_without_effect() -> None:
    with_entropy = {"ENTROPY_LOW", "ENTROPY_HIGH"}  # which need the switch, and have their own test
    known = {setting.name.removeprefix("VDIFF_") for setting in settings_of(WORKER)}
    assert known == {*REACHING_THE_ENGINE, *OF_THE_PROCESS, *with_entropy}
    assert not any("[" in setting.help for setting in KNOWN.values()), "announced, but not there"
