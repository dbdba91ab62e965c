"""API, worker and Valkey processes that are killed, frozen or full, under streams over HTTP."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
import redis

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.chaos.verdict import audit
from tests.stack import (
    COMPLETIONS,
    Stream,
    api_process,
    attempts,
    body_of,
    eventually,
    undisturbed,
    wait_for_status,
    wait_until_ready,
)
from tests.valkey import Valkey
from tests.worker_bench import QUEUE, running_worker, wait_for_worker
from worker.wire import queueing

LEASE_S = 1.0
NUM_STREAMS = 6


@pytest.fixture
def own_url(own_valkey: Valkey) -> Iterator[str]:
    settings = ApiSettings(redis_url=own_valkey.url, sweep_s=0.2)
    with serving(create_app(settings)) as url:
        yield url


def _streams(url: str, num_tokens: int) -> list[Stream]:
    return [Stream(url, body_of(f"{n}", num_tokens, stream=True)) for n in range(NUM_STREAMS)]


def _assert_all_whole(streams: list[Stream], num_tokens: int) -> None:
    for stream in streams:
        stream.assert_whole(undisturbed(str(stream.body["prompt"]), num_tokens))


def test_after_a_kill_of_the_api_its_streams_go_on_at_another_one(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with (
        api_process(valkey) as (url, api),
        api_process(valkey) as (other_url, _),
        running_worker(valkey, "w1", step_s=0.01),
    ):
        wait_until_ready(url, other_url)
        streams = _streams(url, 80)
        for stream in streams:
            stream.wait_for(5)
        api.kill()
        for stream in streams:
            stream.join()
            assert stream.error and not stream.is_done
        for stream in streams:
            stream.resume(other_url)
        _assert_all_whole(streams, 80)
    assert audit(redis_client) == []


@pytest.mark.parametrize("away_s", [0.0, 1.0])
def test_streams_outlive_a_kill_of_valkey(own_valkey: Valkey, own_url: str, away_s: float) -> None:
    with running_worker(own_valkey, "w1", step_s=0.01), own_valkey.connect() as client:
        wait_until_ready(own_url)
        streams = _streams(own_url, 100)
        for stream in streams:
            stream.wait_for(5)
        client.execute_command("WAITAOF", 1, 0, 2000)
        own_valkey.kill()
        time.sleep(away_s)
        own_valkey.start()
        _assert_all_whole(streams, 100)
        assert {attempts(client, stream.job_id) for stream in streams} == {1}
        assert audit(client) == []


def test_streams_outlive_a_valkey_that_has_lost_its_last_second(
    own_valkey: Valkey, own_url: str
) -> None:
    """As after a power failure: what the clients have seen already is not on the disk."""
    disk, copy = own_valkey.folder / "appendonlydir", own_valkey.folder / "copy"
    with running_worker(own_valkey, "w1", step_s=0.01), own_valkey.connect() as client:
        wait_until_ready(own_url)
        streams = _streams(own_url, 100)
        for stream in streams:
            stream.wait_for(5)
        client.execute_command("WAITAOF", 1, 0, 2000)
        shutil.copytree(disk, copy)
        num_seen = len(streams[0].indices)
        streams[0].wait_for(num_seen + 20)
        own_valkey.kill()
        shutil.rmtree(disk)
        copy.rename(disk)
        own_valkey.start()
        _assert_all_whole(streams, 100)
        for stream in streams:
            entries = client.xrange(f"dfl:log:{stream.job_id}")
            deltas = [delta for one in entries for delta in queueing.codec.deltas_of([one])]
            assert "".join(delta.text for delta in deltas) == stream.text
        assert audit(client) == []


def test_who_has_seen_more_than_the_log_holds_is_not_given_another_runs_rest(
    valkey: Valkey,
) -> None:
    with (
        serving(create_app(ApiSettings(redis_url=valkey.url))) as url,
        running_worker(valkey, "w1"),
    ):
        wait_until_ready(url)
        stream = Stream(url, body_of("x", 20, stream=True))
        stream.assert_whole(undisturbed("x", 20))
        events = f"{url}/v1/jobs/{stream.job_id}/events"
        last = stream.indices[-1]
        whole = httpx.get(events, headers={"Last-Event-ID": f"{last}"})
        assert whole.status_code == 200 and whole.text.endswith("data: [DONE]\n\n")
        torn = httpx.get(events, headers={"Last-Event-ID": f"{last + 1}"})
        assert (torn.status_code, torn.json()["error"]["code"]) == (500, "output_lost")


def test_at_the_memory_limit_running_jobs_finish_and_new_ones_are_refused(
    own_valkey: Valkey, own_url: str
) -> None:
    new = body_of("new", 5)
    with (
        running_worker(own_valkey, "w1", step_s=0.02, lease=LEASE_S),
        own_valkey.connect() as client,
    ):
        wait_until_ready(own_url)
        streams = _streams(own_url, 150)
        for stream in streams:
            stream.wait_for(3)
        client.config_set("maxmemory", 1)
        assert httpx.post(own_url + COMPLETIONS, json=new).status_code == 503
        time.sleep(1.5 * LEASE_S)
        wip, (seconds, micros) = f"rq:wip:{QUEUE}", client.time()
        assert client.zcard(wip) == NUM_STREAMS
        assert client.zcount(wip, "-inf", seconds + micros / 1e6) == 0, "a lease has run out"
        _assert_all_whole(streams, 150)
        assert {attempts(client, stream.job_id) for stream in streams} == {1}
        assert httpx.post(own_url + COMPLETIONS, json=new).status_code == 503
        client.config_set("maxmemory", 0)
        answer = httpx.post(own_url + COMPLETIONS, json=new).json()
        assert answer["choices"][0]["text"] == undisturbed("new", 5)
        assert audit(client) == []


def test_streams_go_on_elsewhere_while_their_worker_is_frozen(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    settings = ApiSettings(redis_url=valkey.url, sweep_s=0.2)
    with (
        serving(create_app(settings)) as url,
        running_worker(valkey, "w1", step_s=0.01, lease=LEASE_S) as frozen,
    ):
        wait_until_ready(url)
        streams = _streams(url, 120)
        for stream in streams:
            stream.wait_for(5)
        frozen.send_signal(signal.SIGSTOP)
        with running_worker(valkey, "w2", step_s=0.02, lease=LEASE_S):
            eventually(
                lambda: all(attempts(redis_client, one.job_id) == 2 for one in streams),
                "w2 has all",
            )
            frozen.send_signal(signal.SIGCONT)
            _assert_all_whole(streams, 120)
            _wait_until_idle(redis_client, "w1", "w2")
    assert {attempts(redis_client, stream.job_id) for stream in streams} == {2}
    assert audit(redis_client) == []


def test_streams_are_whole_though_every_subscription_is_cut_again_and_again(
    own_valkey: Valkey, own_url: str
) -> None:
    with running_worker(own_valkey, "w1", step_s=0.01), own_valkey.connect() as client:
        wait_until_ready(own_url)
        streams = _streams(own_url, 120)
        streams[0].wait_for(3)
        num_cut = 0
        while not all(stream.is_done for stream in streams) and num_cut < 200:
            num_cut += client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            time.sleep(0.15)
        _assert_all_whole(streams, 120)
        assert num_cut >= 4
        leaver = Stream(own_url, body_of("leaver", 3000, stream=True), leaves_after=3)
        leaver.join()
        wait_for_status(client, leaver.job_id, "canceled")


def _wait_until_idle(client: redis.Redis, *names: str) -> None:
    """Wait until each worker has said in a beat that it holds no page."""
    wait_for_worker(client, *names)

    def is_idle(name: str) -> bool:
        words = client.get(f"dfl:worker:{name}")
        metrics = queueing.codec.decode_worker_info(words).metrics if words else {}
        return metrics.get("num_pages_held") == 0 and metrics.get("num_page_faults") == 0

    eventually(lambda: all(map(is_idle, names)), "no page is held")


def test_an_api_too_slow_for_its_subscription_is_cut_off_and_catches_up(
    own_valkey: Valkey,
) -> None:
    with (
        own_valkey.connect() as client,
        api_process(own_valkey) as (url, api),
        running_worker(own_valkey, "w1", step_s=0.001, tokens_per_step=4, stream_interval=0),
    ):
        client.config_set("client-output-buffer-limit", "pubsub 16kb 0 0")
        wait_until_ready(url)
        streams = _streams(url, 1500)
        streams[0].wait_for(5)
        api.send_signal(signal.SIGSTOP)
        eventually(lambda: _num_cut_off(client) > 0, "Valkey has had enough")
        api.send_signal(signal.SIGCONT)
        _assert_all_whole(streams, 1500)


def _num_cut_off(client: redis.Redis) -> int:
    return int(client.info("stats")["client_output_buffer_limit_disconnections"])
