"""Files and batches through OpenAI's client, real API processes, a real queue and real workers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis
from openai.types import Batch

import api.batches.hold
from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.api.scripted_worker import wait_until
from tests.stack import api_process
from tests.valkey import Valkey
from tests.worker_bench import MODEL, running_worker
from worker.wire import keys

URL = "/v1/completions"


@contextmanager
def _client(server: Valkey, folder: Path, key: str = "one") -> Iterator[openai.OpenAI]:
    settings = ApiSettings(
        redis_url=server.url, api_key=("one", "two"), files_dir=str(folder / "files")
    )
    with (
        serving(create_app(settings)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client,
    ):
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, "it is ready", 30)
        yield client


def _line(number: int, **body: Any) -> dict[str, Any]:
    asked = {"model": MODEL, "prompt": f"line {number}", "max_tokens": 5, "seed": number}
    return {"custom_id": f"c{number}", "method": "POST", "url": URL, "body": {**asked, **body}}


def _upload(client: openai.OpenAI, lines: list[Any]) -> str:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return client.files.create(file=("in.jsonl", text.encode()), purpose="batch").id


def _begin(client: openai.OpenAI, lines: list[Any], **fields: Any) -> Batch:
    return client.batches.create(
        input_file_id=_upload(client, lines), endpoint=URL, completion_window="24h", **fields
    )


def _ended(client: openai.OpenAI, batch_id: str, limit_s: float = 60.0) -> Batch:
    ends = ("completed", "failed", "expired", "cancelled")
    wait_until(lambda: client.batches.retrieve(batch_id).status in ends, "it has ended", limit_s)
    return client.batches.retrieve(batch_id)


def _results(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    lines = client.files.content(file_id).text.splitlines()
    found = {line["custom_id"]: line for line in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def _figures(client: openai.OpenAI) -> str:
    return httpx.get(str(client.base_url.join("/metrics"))).text


def test_each_line_is_answered_or_says_why_not(valkey: Valkey, tmp_path: Path) -> None:
    lines = [_line(number) for number in range(30)]
    lines[7] = _line(7, temperature=9)
    lines[8] = _line(8, model="none")
    with running_worker(valkey, "w1"), _client(valkey, tmp_path) as client:
        begun = _begin(client, lines, metadata={"a": "b"})
        assert (begun.status, begun.metadata) == ("validating", {"a": "b"})
        batch = _ended(client, begun.id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (30, 28, 2)
        figures = _figures(client).splitlines()
        assert 'dfastllm_batch_lines_total{outcome="completed"} 28.0' in figures
        assert 'dfastllm_batch_lines_total{outcome="failed"} 2.0' in figures
        assert 'dfastllm_batch_jobs{status="in_progress"} 0.0' in figures
        good, bad = (
            _results(client, batch.output_file_id),
            _results(client, batch.error_file_id),
        )
        assert bad["c7"]["response"]["status_code"] == 400
        assert bad["c7"]["response"]["body"]["error"]["param"] == "temperature"
        assert bad["c8"]["response"]["status_code"] == 404
        direct = client.completions.create(**lines[3]["body"])
        assert good["c3"]["response"]["status_code"] == 200
        assert good["c3"]["response"]["body"]["choices"][0]["text"] == direct.choices[0].text
        assert batch.usage is not None
        assert batch.usage.output_tokens == 28 * 5
        assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
        assert [one.id for one in client.batches.list().data] == [batch.id]
        client.files.delete(batch.output_file_id or "")
        with pytest.raises(openai.NotFoundError):
            client.files.content(batch.output_file_id or "")


def test_a_file_with_a_wrong_line_fails_as_a_whole(valkey: Valkey, tmp_path: Path) -> None:
    wrong = [
        _line(1), "{", _line(1), {**_line(3), "url": "/v1/chat/completions"},
        {**_line(4), "method": "GET"}, {"custom_id": "x"}, {**_line(6), "body": [1]},
    ]  # fmt: skip
    with running_worker(valkey, "w1"), _client(valkey, tmp_path) as client:
        batch = _ended(client, _begin(client, wrong).id)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert [(one.line, one.code) for one in batch.errors.data or ()] == [
            (2, "invalid_json_line"),
            (3, "duplicate_custom_id"),
            (4, "invalid_url"),
            (5, "invalid_method"),
            (6, "invalid_line"),
            (7, "invalid_body"),
        ]
        empty = _ended(client, _begin(client, [""]).id)
        assert empty.errors is not None
        assert [one.code for one in empty.errors.data or ()] == ["empty_file"]


def test_cancelling_keeps_what_is_answered(
    valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.batches.hold, "LEASE_S", 1.0)
    with running_worker(valkey, "w1", step_s=0.02), _client(valkey, tmp_path) as client:
        batch_id = _begin(client, [_line(number, max_tokens=20) for number in range(200)]).id

        def has_some() -> bool:
            counts = client.batches.retrieve(batch_id).request_counts
            return counts is not None and counts.completed > 5

        wait_until(has_some, "some are answered")
        assert 'dfastllm_batch_jobs{status="in_progress"} 1.0' in _figures(client)
        assert client.batches.cancel(batch_id).status == "cancelling"
        batch = _ended(client, batch_id)
        assert batch.status == "cancelled"
        good, bad = (
            _results(client, batch.output_file_id),
            _results(client, batch.error_file_id),
        )
        assert len(good) > 5
        assert len(good) + len(bad) == 200
        assert {one["error"]["code"] for one in bad.values()} == {"batch_cancelled"}
        assert batch.cancelling_at and batch.cancelled_at


def test_a_batch_that_is_too_old_expires(
    valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.batch_desk.WINDOW_S", 2)
    with running_worker(valkey, "w1", step_s=0.02), _client(valkey, tmp_path) as client:
        batch = _ended(client, _begin(client, [_line(n, max_tokens=900) for n in range(40)]).id)
        assert batch.status == "expired"
        bad = _results(client, batch.error_file_id)
        assert {one["error"]["code"] for one in bad.values()} == {"batch_expired"}
        assert batch.request_counts is not None
        assert batch.request_counts.completed + len(bad) == 40


def test_asking_again_with_the_same_key_makes_no_second_batch(
    valkey: Valkey, tmp_path: Path
) -> None:
    headers = {"Idempotency-Key": "k1"}
    with (
        running_worker(valkey, "w1"),
        _client(valkey, tmp_path) as one,
        _client(valkey, tmp_path, "two") as two,
    ):
        wanted: Any = {"endpoint": URL, "completion_window": "24h", "extra_headers": headers}
        file_id = _upload(one, [_line(1)])
        first = one.batches.create(input_file_id=file_id, **wanted)
        assert _ended(one, first.id).status == "completed"
        again = one.batches.create(input_file_id=file_id, **wanted)
        assert (again.id, again.status) == (first.id, "completed")
        assert len(one.batches.list().data) == 1
        one.files.delete(file_id)
        assert one.batches.create(input_file_id=file_id, **wanted).id == first.id
        with pytest.raises(openai.UnprocessableEntityError):
            one.batches.create(input_file_id=file_id, metadata={"a": "b"}, **wanted)
        other = two.batches.create(input_file_id=_upload(two, [_line(1)]), **wanted)
        assert other.id != first.id


def test_another_tenant_sees_nothing_of_it(valkey: Valkey, tmp_path: Path) -> None:
    with (
        running_worker(valkey, "w1"),
        _client(valkey, tmp_path) as one,
        _client(valkey, tmp_path, "two") as two,
    ):
        file_id = _upload(one, [_line(1)])
        batch_id = _begin(one, [_line(1)]).id
        for call in (
            lambda: two.files.retrieve(file_id),
            lambda: two.files.content(file_id),
            lambda: two.files.delete(file_id),
            lambda: two.batches.retrieve(batch_id),
            lambda: two.batches.cancel(batch_id),
            lambda: two.batches.create(
                input_file_id=file_id, endpoint=URL, completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        assert two.files.list().data == []
        assert two.batches.list().data == []
        assert [one_file.id for one_file in one.files.list(purpose="batch").data][-1] == file_id


def test_a_batch_survives_the_death_of_api_worker_and_queue(
    valkey: Valkey, redis_client: redis.Redis, tmp_path: Path
) -> None:
    lines = [_line(number, max_tokens=10) for number in range(300)]
    with (
        _api_process(valkey, tmp_path) as (first, api_process),
        running_worker(valkey, "w1", step_s=0.01, lease=2.0) as worker,
    ):
        batch_id = _begin(first, lines).id

        def has_some() -> bool:
            counts = first.batches.retrieve(batch_id).request_counts
            return counts is not None and counts.completed > 20

        wait_until(has_some, "some are answered", 30)
        api_process.kill()
        worker.kill()
    valkey.kill()
    valkey.start()
    with (
        running_worker(valkey, "w2", step_s=0.0, lease=2.0),
        _client(valkey, tmp_path) as second,
    ):
        batch = _ended(second, batch_id, 90)
        assert batch.status == "completed"
        good = _results(second, batch.output_file_id)
        assert set(good) == {line["custom_id"] for line in lines}
        again = second.completions.create(**lines[9]["body"])
        assert good["c9"]["response"]["body"]["choices"][0]["text"] == again.choices[0].text
        assert list((tmp_path / "files").glob("*.part-*")) == []
        assert redis_client.zcard(keys.OPEN_BATCHES) == 0


def test_a_full_disk_refuses_a_file_and_harms_nothing(valkey: Valkey, tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    with running_worker(valkey, "w1"), _client(valkey, tmp_path) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            _upload(client, [_line(1)])
        assert caught.value.status_code == 507
        assert client.files.list().data == []
        (tmp_path / "files").unlink()
        assert _ended(client, _begin(client, [_line(1)]).id).status == "completed"


def test_what_is_wrong_with_an_upload_is_named(valkey: Valkey, tmp_path: Path) -> None:
    with running_worker(valkey, "w1"), _client(valkey, tmp_path) as client:
        url, headers = str(client.base_url), {"Authorization": "Bearer one"}
        file = {"file": b"x"}
        keep = {"purpose": "batch", "expires_after[anchor]": "created_at"}
        for data, files, param in (
            (keep, {"other": b"x"}, "other"),
            (keep, {"purpose": b"x"}, "file"),
            ({"purpose": "vision"}, file, "purpose"),
            (keep | {"expires_after[seconds]": "5"}, file, "expires_after"),
            (keep | {"expires_after[anchor]": "now"}, file, "expires_after.anchor"),
            (keep | {"expires_after[seconds]": "x"}, file, "expires_after.seconds"),
            ({"purpose": "batch", "shoe": "5"}, file, "shoe"),
        ):
            reply = httpx.post(f"{url}files", data=data, files=files, headers=headers)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        reply = httpx.post(f"{url}files", json={}, headers=headers)
        assert reply.status_code == 415
        for name in ("../../etc/passwd", "file-none"):
            with pytest.raises(openai.NotFoundError):
                client.files.retrieve(name)


@contextmanager
def _api_process(
    server: Valkey, folder: Path
) -> Iterator[tuple[openai.OpenAI, subprocess.Popen[bytes]]]:
    settings = {"FILES_DIR": str(folder / "files"), "API_KEY": "one"}
    with (
        api_process(server, **settings) as (url, process),
        openai.OpenAI(base_url=f"{url}/v1", api_key="one", max_retries=8) as client,
    ):
        wait_until(lambda: _is_up(url), "the API is up", 30)
        yield client, process


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
