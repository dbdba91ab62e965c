"""Table `prefix_sharing`: time to first token by the floor of the cache where a prefix lies."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random

from redis import Redis

from benchmarks.load import Request, run_streams
from benchmarks.model_free import queue_in_folder
from benchmarks.options import Options
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Case, Sample, interleave, middle, percentile, ratio
from benchmarks.server import free_port, process, wait_until_ready

PAGE = 16
LENGTHS = (256, 512, 1024, 1984)
"""Of prefixes in tokens; the last one with its tail fills the shipped models' context."""
TAIL_TOKENS = 16
NUM_PROMPTS = 3  # of each length, place and round
WAIT_S = 60.0
QUIET_S = 1.0
REDIS_MB = "2048"
SHARING = {"PREFIX_CACHE_REDIS_MB": REDIS_MB, "PREFIX_CACHE_SECRET": "of the benchmark"}
WORKERS: Mapping[str, Mapping[str, str]] = {
    "plain": {},
    "writer": SHARING,
    "reader": SHARING,
    "host": {"PREFIX_CACHE_HOST_MB": "512", "KV_CACHE_MB": "40"},
}
"""Settings of each; all have the same weights. The last one's device holds one context alone."""
COMPUTED, WRITTEN, REDIS, HOST, DEVICE = PLACES = (
    "computed",
    "computed and written",
    "from Redis",
    "from host memory",
    "on the device",
)
# Plain tokens in any vocabulary worth serving: above the bytes and below the end.
_TOKEN_IDS = range(300, 2000)
_NOTES = (
    f"Prompts of the prefix and {TAIL_TOKENS} tokens more, random ids, one request at a time, over "
    "HTTP and the queue, to one of four workers with the same weights on one Valkey (that of "
    "`dfastllm serve`, on a unix socket, with its log on disk).",
    "computed: by a worker without lower floors. computed and written: by one that hands its pages "
    "to Redis meanwhile. from Redis: the same prefix, another tail, by a worker that has never "
    "seen it. from host memory: by a worker whose device has forgotten it. on the device: asked "
    "for once more.",
    "`x sooner`: computed by from Redis, the median of the rounds' own ratios. `cached`: tokens of "
    "that prompt that its `usage` reports as cached. Round trips and MB: what one such request "
    "asks of Redis more than one that is on the device, counted by Redis. A worker neither writes "
    "nor asks for what it computes in little more time; such a row says 0 cached.",
)


@dataclass(frozen=True)
class _Site:
    """A queue, an API, and the workers, each under a model name of its own."""

    redis: Redis
    port: int
    options: Options

    @property
    def num_prompts(self) -> int:
        return 1 if self.options.quick else NUM_PROMPTS


def run(options: Options) -> Table:
    with _site(options) as site:
        samples = interleave(_cases(site), options.num_rounds)
    bars = {
        f"{length} tokens": {
            place: middle(samples[_name(length, place)], "first_ms_p50") for place in PLACES
        }
        for length in LENGTHS
    }
    return Table(
        "prefix_sharing",
        "Time to first token by where a prefix lies",
        (
            *("prefix", *(f"{place}, ms" for place in PLACES)),
            *("x sooner", "cached", "round trips", "MB"),
        ),
        [_row(length, samples) for length in LENGTHS],
        _NOTES,
        samples,
        Chart("ms to the first token", bars),
    )


@contextmanager
def _site(options: Options) -> Iterator[_Site]:
    with ExitStack() as stack:
        folder, queue = stack.enter_context(queue_in_folder())
        redis = stack.enter_context(Redis.from_url(queue.url))
        port = free_port()
        for name, settings in WORKERS.items():
            command = [sys.executable, "-m", "worker", "--name", name]
            own = {"MODEL_NAME": name, "REDIS_URL": queue.url, **settings}
            stack.enter_context(process(command, folder / f"{name}.log", **own))
        api = {"PORT": str(port), "REDIS_URL": queue.url}
        child = process([sys.executable, "-m", "api"], folder / "api.log", **api)
        wait_until_ready(port, stack.enter_context(child))
        _wait_for(redis, "dfl:models", len(WORKERS))
        yield _Site(redis, port, options)


def _wait_for(redis: Redis, key: str, count: int) -> None:
    """Until a sorted set has so many members."""
    deadline = time.monotonic() + WAIT_S
    while redis.zcard(key) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{key} has {redis.zcard(key)} members, not {count}")
        time.sleep(0.01)


def _wait_for_pages(redis: Redis, count: int) -> None:
    """Until so many are there, or none has come for a while: short prefixes may not be wanted."""
    known, since = 0, time.monotonic()
    while (found := redis.zcard("dfl:kv")) < count and time.monotonic() < since + QUIET_S:
        if found != known:
            known, since = found, time.monotonic()
        time.sleep(0.01)


def _name(length: int, place: str) -> str:
    return f"{length} {place}"


def _cases(site: _Site) -> dict[str, Case]:
    """In this order: what is read was written just before."""
    return {
        _name(length, place): lambda number, n=length, p=place: _measure(site, number, n, p)  # type: ignore[misc]
        for length in LENGTHS
        for place in PLACES
    }


def _measure(site: _Site, number: int, length: int, place: str) -> Sample:
    prompts = [f"{number}:{length}:{index}" for index in range(site.num_prompts)]
    match place:
        case "computed":
            return _ask(site, "plain", [_prompt(site, name, length, 0) for name in prompts])
        case "computed and written":
            num_pages = site.redis.zcard("dfl:kv") + len(prompts) * (length // PAGE)
            sample = _ask(site, "writer", [_prompt(site, name, length, 0) for name in prompts])
            _wait_for_pages(site.redis, num_pages)
            return sample
        case "from Redis":
            return _ask(site, "reader", [_prompt(site, name, length, 1) for name in prompts])
        case "on the device":
            return _ask(site, "reader", [_prompt(site, name, length, 2) for name in prompts])
        case _:
            return _from_host(site, prompts, length)


def _from_host(site: _Site, prompts: list[str], length: int) -> Sample:
    """Compute, have the device forget it by something that needs all of its pages, ask again."""
    _ask(site, "host", [_prompt(site, name, length, 0) for name in prompts])
    _ask(site, "host", [_prompt(site, f"{prompts[0]}:crowd", max(LENGTHS), 0)])
    return _ask(site, "host", [_prompt(site, name, length, 1) for name in prompts])


def _ask(site: _Site, worker: str, prompts: list[list[int]]) -> Sample:
    requests = [_request(worker, prompt) for prompt in prompts]
    before = _traffic(site.redis)
    streams = run_streams(site.port, requests, at_once=1).streams
    after = _traffic(site.redis)
    first = [stream.first_s * 1e3 for stream in streams]
    return {
        "first_ms_p50": percentile(first, 0.5),
        "first_ms_max": max(first),
        "cached": percentile([stream.num_cached_tokens for stream in streams], 0.5),
        **{kind: (after[kind] - before[kind]) / len(streams) for kind in after},
    }


def _traffic(redis: Redis) -> dict[str, float]:
    stats = redis.info("stats")
    return {
        "reads": float(stats["total_reads_processed"]),
        "mb_out": stats["total_net_output_bytes"] / 1e6,
    }


def _prompt(site: _Site, name: str, length: int, tail: int) -> list[int]:
    prefix = Random(f"{site.options.seed}:{name}").choices(_TOKEN_IDS, k=length)
    own = Random(f"{site.options.seed}:{name}:{tail}").choices(_TOKEN_IDS, k=TAIL_TOKENS)
    return prefix + own


def _request(worker: str, prompt: list[int]) -> Request:
    body = {"model": worker, "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
    return "/v1/completions", body


def _row(length: int, samples: dict[str, list[Sample]]) -> list[Cell]:
    found, near, computed = (samples[_name(length, p)] for p in (REDIS, DEVICE, COMPUTED))
    return [
        length,
        *(middle(samples[_name(length, place)], "first_ms_p50") for place in PLACES),
        ratio(computed, found, "first_ms_p50"),
        middle(found, "cached"),
        middle(found, "reads") - middle(near, "reads"),
        middle(found, "mb_out") - middle(near, "mb_out"),
    ]
