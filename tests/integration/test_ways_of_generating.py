"""Every way of generating through API, queue and a worker with the shipped models."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from engine.build import EMBEDDED_NAME
from tests.real_worker import client_of_a_real_worker
from tests.valkey import Valkey
from worker.wire.messages import MASK

HELLO: Any = [{"role": "user", "content": "Tell me a short story about a cat."}]
START = "Once upon a time there was a"
LOSSLESS = {"ar": True, "deer": True, "spec_diff": True}
LOSSY = {"semi_ar": False, "diffusion": False, "apd": False}


def test_a_client_gets_every_way_of_generating(valkey: Valkey) -> None:
    with client_of_a_real_worker(valkey) as client:
        (model,) = client.models.list().data
        assert set(model.model_extra["modes"]) == {*LOSSLESS, *LOSSY}
        _ask_in_every_mode(client)
        _skip_verification(client)
        _predict_the_answer(client)
        _fill_in(client)
        _look_at_the_steps(client)
        _ask_for_what_a_mode_cannot_do(client)


def _ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        model=EMBEDDED_NAME, messages=HELLO, temperature=0, max_tokens=24, **fields
    )


def _ask_in_every_mode(client: openai.OpenAI) -> None:
    texts = {}
    for mode, is_lossless in (LOSSLESS | LOSSY).items():
        answer = _ask(client, extra_body={"mode": mode})
        texts[mode] = answer.choices[0].message.content
        generation = answer.model_extra["metrics"]["generation"]
        assert (generation["mode"], generation["lossless"]) == (mode, is_lossless)
        assert generation["num_forwards"] > 0
    assert texts["deer"] == texts["spec_diff"] == texts["ar"]
    assert all(texts.values())
    knobs = {"block_length": 8, "confidence_threshold": 0.5, "remasking": "entropy"}
    answer = _ask(client, extra_body={"mode": "semi_ar", **knobs})
    assert answer.choices[0].message.content


def _skip_verification(client: openai.OpenAI) -> None:
    """Lossy, and said: in the answer, and in the last chunk of a stream."""
    for mode in ("deer", "spec_diff"):
        fields: Any = {"extra_body": {"mode": mode, "skip_verify_confidence": 0.5}}
        answer = _ask(client, **fields)
        *_, last = _ask(client, stream=True, stream_options={"include_usage": True}, **fields)
        for said in (answer, last):
            generation = said.model_extra["metrics"]["generation"]
            assert (generation["mode"], generation["lossless"]) == (mode, False)


def _predict_the_answer(client: openai.OpenAI) -> None:
    plain = _ask(client, extra_body={"mode": "ar"})
    assert plain.usage.completion_tokens_details is None
    text = plain.choices[0].message.content
    prediction: Any = {"type": "content", "content": text}
    for mode in LOSSLESS:
        answer = _ask(client, prediction=prediction, extra_body={"mode": mode})
        assert answer.choices[0].message.content == text
        details = answer.usage.completion_tokens_details
        assert details.accepted_prediction_tokens > 0
        assert details.rejected_prediction_tokens == 0


def _fill_in(client: openai.OpenAI) -> None:
    def fill(suffix: Any, **fields: Any) -> Any:
        return client.completions.create(
            model=EMBEDDED_NAME,
            prompt=START,
            suffix=suffix,
            temperature=0,
            max_tokens=12,
            **fields,
        )

    one = fill(" and the dog ran home.")
    assert one.choices[0].text
    assert one.model_extra["metrics"]["generation"]["mode"] == "diffusion"
    several = fill([" and", " ran home."]).choices[0]
    assert "".join(several.model_extra["holes"]) == several.text
    assert all(several.model_extra["holes"])
    *_, last = fill([" and", " ran home."], stream=True)
    assert last.choices[0].model_extra["holes"] == several.model_extra["holes"]


def _look_at_the_steps(client: openai.OpenAI) -> None:
    for mode in ("semi_ar", "diffusion"):
        whole = _ask(client, extra_body={"mode": mode}).choices[0].message.content
        chunks = list(_ask(client, stream=True, extra_body={"mode": mode, "diffusing": True}))
        shown = [chunk for chunk in chunks if chunk.choices[0].delta.content]
        assert shown[-1].choices[0].delta.content == whole
        assert MASK in shown[0].choices[0].delta.content
        progress = [chunk.model_extra["diffusion_meta"]["diffusion_progress"] for chunk in shown]
        assert progress == sorted(progress)
        assert progress[-1] == 1.0
        assert not chunks[-1].choices[0].delta.content
        assert chunks[-1].choices[0].finish_reason
    plain = _ask(client, extra_body={"mode": "deer", "draft_length": 5})
    stats = plain.model_extra["metrics"]["speculative_decoding"]
    body = {"mode": "deer", "draft_length": 5, "return_draft_events": True}
    chunks = list(_ask(client, stream=True, extra_body=body))
    events = [event for chunk in chunks for event in chunk.model_extra.get("draft_events", [])]
    assert sum(event["num_accepted"] for event in events) == stats["num_accepted_draft_tokens"]
    assert sum(len(event["drafted"]) for event in events) == stats["num_draft_tokens"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == plain.choices[0].message.content


def _ask_for_what_a_mode_cannot_do(client: openai.OpenAI) -> None:
    for param, fields in (
        ("block_length", {"extra_body": {"mode": "ar", "block_length": 8}}),
        ("draft_length", {"extra_body": {"mode": "semi_ar", "draft_length": 2}}),
        ("prediction", {"extra_body": {"mode": "diffusion"}, "prediction": _content("x")}),
        ("acceptance", {"extra_body": {"mode": "semi_ar", "acceptance": "rejection"}}),
        ("logprobs", {"extra_body": {"mode": "semi_ar"}, "logprobs": True}),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                _ask(client, stream=stream, **fields)
            assert caught.value.param == param
    for fields in ({"logprobs": 0}, {"logprobs": 1, "echo": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(
                model=EMBEDDED_NAME, prompt=START, extra_body={"mode": "diffusion"}, **fields
            )
        assert caught.value.param == "logprobs"


def _content(text: str) -> dict[str, str]:
    return {"type": "content", "content": text}
