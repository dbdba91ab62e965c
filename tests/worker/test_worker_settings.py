"""Settings: read by name, refused by name."""

from __future__ import annotations

import msgspec
import pytest

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
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read_settings({name: value})


def test_an_unknown_name_is_refused_with_a_guess_at_what_was_meant() -> None:
    with pytest.raises(
        SettingsError, match=r"VDIFF_MAX_BATCHSIZE.*did you mean VDIFF_MAX_BATCH_SIZE"
    ):
        read_settings({"VDIFF_MAX_BATCHSIZE": "3"})


def test_what_this_version_does_not_have_is_refused_and_not_ignored() -> None:
    with pytest.raises(SettingsError, match=r"VDIFF_ENABLE_APD: this version has no such"):
        read_settings({"VDIFF_ENABLE_APD": "true"})
    assert read_settings({"VDIFF_ENABLE_APD": "false"}) == WorkerSettings()


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


def test_a_wrong_address_is_refused_without_showing_its_password() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"VDIFF_REDIS_URL": "http://:secret@host"})
    assert "secret" not in str(caught.value)


def test_the_log_shows_what_was_changed_but_no_address() -> None:
    settings = read_settings({"VDIFF_REDIS_URL": "redis://:secret@host", "VDIFF_LEASE": "9"})
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
