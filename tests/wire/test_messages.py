"""The messages' bytes do not change, and neighbouring versions understand each other."""

from __future__ import annotations

import msgspec
import pytest

from tests.wire.golden import EARLIER, MESSAGES
from worker.wire import codec
from worker.wire.messages import Delta, Finished, Frame, GenerateJob, ModelInfo, Usage


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_the_bytes_it_always_had(name: str) -> None:
    message, golden = MESSAGES[name]
    assert codec.encode(message).hex() == golden


@pytest.mark.parametrize("name", MESSAGES)
def test_bytes_of_old_are_still_read(name: str) -> None:
    message, golden = MESSAGES[name]
    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=type(message)) == message


@pytest.mark.parametrize(("name", "earlier"), EARLIER)
def test_bytes_of_earlier_versions_are_still_read(name: str, earlier: str) -> None:
    message = MESSAGES[name][0]
    assert msgspec.msgpack.decode(bytes.fromhex(earlier), type=type(message)) == message


def test_a_field_that_a_later_version_adds_is_skipped() -> None:
    later = msgspec.msgpack.encode(
        ["finished", "j1", 5, [3, 2, 1, "new"], None, 2, None, None, None, "new"],
    )
    assert codec.decode_event(later) == Finished("j1", 5, Usage(3, 2, 1), None, 2)
    model = {
        "name": "m",
        "max_model_len": 1,
        "modes": [],
        "created": 1,
        "fingerprint": "",
        "new": 1,
    }
    assert codec.decode_model_info(msgspec.msgpack.encode(model)) == ModelInfo("m", 1, [], 1, "")


def test_a_field_that_an_earlier_version_lacks_gets_its_default() -> None:
    earlier = msgspec.msgpack.encode(["delta", "j1", 0, 0, [1], "a"])
    assert codec.decode_event(earlier) == Delta("j1", 0, 0, [1], "a", None, None)


def test_a_job_of_a_newer_wire_version_is_not_guessed_at() -> None:
    job = MESSAGES["prompts job"][0]
    assert isinstance(job, GenerateJob)
    with pytest.raises(codec.UnreadableError, match="wire version 99"):
        codec.decode_job(codec.encode(msgspec.structs.replace(job, v=99)))


def test_the_frames_that_lua_puts_together_are_frames() -> None:
    """The scripts write an array of any length with the longest header there is."""
    event = codec.encode(Delta("j1", 0, 0, [1], "a"))
    packed = b"\x92" + codec.encode("w1") + b"\xdd" + (1).to_bytes(4, "big") + event
    assert codec.decode_frame(packed) == Frame("w1", [Delta("j1", 0, 0, [1], "a")])


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65535, 65536, 100_000])
def test_bytes_of_any_length_reach_a_script(size: int) -> None:
    # As a string's bytes, valid text or not: Redis' msgpack knows no other kind.
    packed = msgspec.msgpack.encode(codec.for_lua(b"x" * size))
    assert msgspec.msgpack.decode(packed, type=str) == "x" * size
