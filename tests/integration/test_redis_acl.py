"""deploy/redis/users.acl: the whole server runs under its users, and each is refused the rest."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.valkey import Valkey, running_valkey
from tests.worker_bench import QUEUE, running_worker, wait_for_model, wait_for_worker
from worker.wire import keys, lua

ROOT = Path(__file__).parents[2]
ACL = ROOT / "deploy" / "redis"
CALL = re.compile(r"redis\.p?call\(\s*['\"](\w+)")
BIN = Path(sys.executable).parent
ROLES = ("admin", "api", "worker", "dashboard", "metrics", "replica", "sentinel")
PASSWORDS = {role: f"{role}-s3cr3t!" for role in ROLES}
WAIT_S = 30.0
REFUSED = "(?i)no permission"

# What KEDA's scaler of Redis lists asks, in words of our own.
LENGTH_OF_ANY = """
local kind = redis.call('type', KEYS[1]).ok
if kind == 'zset' then return redis.call('zcard', KEYS[1]) end
return redis.call('llen', KEYS[1])
"""


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("acl") / "users.acl"
    path.write_text(_rendered(PASSWORDS))
    return path


@pytest.fixture
def server(users: Path) -> Iterator[Valkey]:
    with running_valkey(tcp=True, conf=f"aclfile {users}\n", password=PASSWORDS["admin"]) as server:
        yield server


def _rendered(passwords: dict[str, str]) -> str:
    given = {f"REDIS_{role.upper()}_PASSWORD": word for role, word in passwords.items()}
    done = subprocess.run(
        ["sh", str(ACL / "users.sh")],
        env={**os.environ, **given}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def _url(server: Valkey, role: str) -> str:
    return f"redis://{role}:{PASSWORDS[role]}@127.0.0.1:{server.port}/0"


def _client(server: Valkey, role: str) -> redis.Redis:
    return redis.Redis.from_url(_url(server, role))


def _refusals(admin: redis.Redis) -> list[tuple[str, str, str]]:
    return [
        (entry["username"], entry["reason"], entry["object"])
        for entry in admin.acl_log()
        if entry["username"] in ROLES
    ]


def test_the_whole_server_runs_under_its_users(server: Valkey) -> None:
    settings = ApiSettings(redis_url=_url(server, "api"), rate_limit_requests=1000)
    worker_url = {"redis_url": _url(server, "worker"), "lease": 1.0, "step_s": 0.01}
    with server.connect() as admin, serving(create_app(settings)) as api:
        with running_worker(server, "w1", **worker_url) as first:  # type: ignore[arg-type]
            wait_for_model(admin)
            assert _ask(api, max_tokens=5).status_code == 200
            with httpx.stream("POST", f"{api}/v1/completions", json=_body(900), timeout=20) as one:
                next(one.iter_bytes())  # and gone: cancelled
            _wait_until(lambda: admin.zcard(f"rq:canceled:{QUEUE}") == 1, "it is cancelled")
            with httpx.stream("POST", f"{api}/v1/completions", json=_body(100), timeout=20) as two:
                words = two.iter_bytes()
                next(words)
                first.kill()
                with running_worker(server, "w2", **worker_url) as second:  # type: ignore[arg-type]
                    assert b"".join(words).endswith(b"data: [DONE]\n\n")
                    wait_for_worker(admin, "w2")
                    assert "w2" in _rq(server, "info")
                    second.terminate()
                    assert second.wait(20) == 0
        assert httpx.get(f"{api}/metrics").status_code == 200
        assert _refusals(admin) == []


def test_the_dashboards_pages_and_buttons_work(server: Valkey) -> None:
    settings = ApiSettings(redis_url=_url(server, "api"))
    poison = {"redis_url": _url(server, "worker")}
    with server.connect() as admin:
        with (
            serving(create_app(settings)) as api,
            running_worker(server, "w1", **poison),  # type: ignore[arg-type]
        ):
            wait_for_model(admin)
            for _ in range(3):
                assert _ask(api, max_tokens=2).status_code == 200
        names = [name.decode() for name in admin.zrange(f"rq:finished:{QUEUE}", 0, -1)]
        for name in names[:2]:
            admin.zadd(f"rq:failed:{QUEUE}", {name: time.time() + 600})
            admin.hset(keys.job(name), "status", "failed")
        with _dashboard(_url(server, "dashboard")) as (get, post):
            pages = ["/", "/0/data/queues.json", "/0/data/workers.json"]
            pages += [f"/0/data/jobs/{QUEUE}/{name}/8/asc/1.json" for name in REGISTRIES]
            pages += [f"/0/view/job/{names[0]}", f"/0/data/job/{names[0]}.json"]
            for page in pages:
                get(page)
            assert _refusals(admin) == []
            post(f"/job/{names[0]}/requeue")
            assert admin.lrange(keys.queue(QUEUE), 0, -1) == [names[0].encode()]
            post(f"/queue/{QUEUE}/compact")
            post(f"/requeue/{QUEUE}")
            assert admin.llen(keys.queue(QUEUE)) == 2
            post(f"/job/{names[2]}/delete")
            post(f"/queue/{QUEUE}/queued/empty")
            assert admin.keys("rq:job:*") == []
        assert _refusals(admin) == []


REGISTRIES = ("queued", "started", "finished", "failed", "canceled", "deferred", "scheduled")

FOREIGN = (("GET", "other"), ("SET", "other", 1), ("SUBSCRIBE", "other"), ("PUBLISH", "other", 1))
ADMINISTRATION = (
    ("CONFIG", "GET", "*"), ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", 0), ("SHUTDOWN",),
    ("ACL", "LIST"), ("MONITOR",), ("CLIENT", "KILL", "TYPE", "normal"), ("REPLICAOF", "h", 1),
    ("SCRIPT", "FLUSH"), ("RANDOMKEY",), ("MIGRATE", "h", 1, "rq:job:a", 0, 1), ("BGREWRITEAOF",),
    ("FUNCTION", "LIST"), ("SWAPDB", 0, 1),
)  # fmt: skip
OWN = {
    "api": [("LPOP", "rq:queue:q"), ("LMOVE", "rq:queue:q", "rq:x", "LEFT", "LEFT"),
            ("GET", "dfl:kv:page"), ("SET", "dfl:kv:page", 1), ("ZADD", "dfl:kv", 1, "x")],
    "worker": [],
    "dashboard": [("XRANGE", "dfl:log:a", "-", "+"), ("GET", "dfl:kv:page"),
                  ("PUBLISH", "dfl:api:a", "x"), ("EVAL", "return 1", 0)],
    "metrics": [("HGETALL", "rq:job:a"), ("HGET", "rq:job:a", "dfl"), ("LPUSH", "rq:queue:q", "x"),
                ("ZADD", "rq:failed:q", 1, "x"), ("XRANGE", "dfl:log:a", "-", "+"),
                ("DEL", "rq:queue:q"), ("EVAL", "redis.call('del', KEYS[1])", 1, "rq:queue:q")],
}  # fmt: skip


@pytest.mark.parametrize("role", OWN)
def test_each_role_is_refused_what_it_does_not_need(server: Valkey, role: str) -> None:
    for command in (*FOREIGN, *ADMINISTRATION, *OWN[role]):
        with _client(server, role) as client, pytest.raises(ResponseError, match=REFUSED):
            client.execute_command(*command)
            pytest.fail(f"{role} may {command}")


def test_each_role_may_run_every_command_of_its_scripts(server: Valkey) -> None:
    """Also of scripts that no test here runs: where one is missing, users.acl must grow."""
    scripts = ROOT / "worker" / "wire" / "scripts"
    of_worker = [path.stem for path in scripts.glob("*.lua")]
    callers = [*(ROOT / "worker" / "wire").glob("*.py"), *(ROOT / "api").glob("*.py")]
    of_api = re.findall(r'acall\(\s*[\w.]+,\s*"(\w+)"', "".join(p.read_text() for p in callers))
    assert "enqueue" in of_api and "claim" not in of_api
    texts = {
        "worker": [(scripts / f"{name}.lua").read_text() for name in of_worker],
        "api": [(scripts / f"{name}.lua").read_text() for name in ("lib", *of_api)]
        + [path.read_text() for path in (ROOT / "api").glob("*.lua")],
    }
    with server.connect() as admin:
        for role, of_role in texts.items():
            for name in {one.upper() for one in CALL.findall("".join(of_role))}:
                arity = abs(admin.execute_command("COMMAND", "INFO", name)[name.lower()]["arity"])
                place = "rq:pubsub:x" if name == "PUBLISH" else "rq:x"
                arguments = [place] * (arity - 1)
                may = admin.execute_command("ACL", "DRYRUN", role, name, *arguments)
                assert may in (b"OK", True), (role, name, may)


def test_the_api_cannot_claim_a_job(server: Valkey) -> None:
    arguments = {
        "queues": [QUEUE],
        "limit": 1,
        "lease": 30.0,
        "execution": "x",
        "worker": "thief",
        "foreign": {},
        "expired": {},
        "fingerprint": "",
        "unlike": {},
        "frame_head": "",
    }
    with _client(server, "api") as client, pytest.raises(ResponseError, match=REFUSED):
        lua.call(client, "claim", arguments)


def test_metrics_may_count_what_waits_and_nothing_more(server: Valkey) -> None:
    with server.connect() as admin:
        admin.rpush(keys.queue(QUEUE), "a", "b")
        admin.zadd(f"rq:failed:{QUEUE}", {"x": 1})
    with _client(server, "metrics") as client:
        assert client.llen(keys.queue(QUEUE)) == 2
        assert client.eval(LENGTH_OF_ANY, 1, keys.queue(QUEUE)) == 2
        assert client.eval(LENGTH_OF_ANY, 1, f"rq:failed:{QUEUE}") == 1
        assert client.info("memory")["used_memory"] > 0


def test_a_stranger_and_the_default_user_are_not_let_in(server: Valkey) -> None:
    at_once = Retry(NoBackoff(), 0)
    with (
        redis.Redis(port=server.port, retry=at_once) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_a_role_without_a_password_is_left_out_and_the_bare_file_starts_nothing(
    tmp_path: Path,
) -> None:
    text = _rendered({"api": "p", "admin": "q"})
    assert re.findall(r"(?m)^user (\S+)", text) == ["default", "admin", "api"]
    with (
        pytest.raises(AssertionError, match="has stopped"),
        running_valkey(conf=f"aclfile {ACL / 'users.acl'}\n"),
    ):
        pass


def _body(max_tokens: int) -> dict[str, object]:
    return {"model": "fake", "prompt": "x", "max_tokens": max_tokens, "stream": True}


def _ask(api: str, max_tokens: int) -> httpx.Response:
    return httpx.post(f"{api}/v1/completions", json=_body(max_tokens), timeout=20)


def _rq(server: Valkey, command: str) -> str:
    done = subprocess.run(
        [str(BIN / "rq"), command, "-u", _url(server, "dashboard")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def _wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


@contextmanager
def _dashboard(redis_url: str) -> Iterator[tuple[Callable[[str], bytes], Callable[[str], bytes]]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(BIN / "rq-dashboard"), "-b", "127.0.0.1", "-p", str(port), "-u", redis_url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(path: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=20) as answer:
            return bytes(answer.read())

    def is_there() -> bool:
        try:
            return bool(get("/favicon.ico")) or True
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None
            return False

    try:
        _wait_until(is_there, "the dashboard answers")
        yield get, lambda path: get(path, b"")
    finally:
        process.terminate()
        process.wait(timeout=20)
