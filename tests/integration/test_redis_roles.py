"""deploy/redis/users.acl: each role may run its scripts, and is refused what it does not need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from tests.acl_server import ACL, ROOT, client_of, rendered, running_acl_server
from tests.valkey import Valkey, running_valkey
from tests.worker_bench import QUEUE
from worker.job_store import JobStore
from worker.wire import keys

CALL = re.compile(r"redis\.p?call\(\s*['\"](\w+)")
REFUSED = "(?i)no permission|the user executing the script can't"  # 7.0 has other words

# What KEDA's scaler of Redis lists asks, in words of our own.
LENGTH_OF_ANY = """
local kind = redis.call('type', KEYS[1]).ok
if kind == 'zset' then return redis.call('zcard', KEYS[1]) end
return redis.call('llen', KEYS[1])
"""

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


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with running_acl_server() as server:
        yield server


@pytest.mark.parametrize("role", OWN)
def test_each_role_is_refused_what_it_does_not_need(server: Valkey, role: str) -> None:
    for command in (*FOREIGN, *ADMINISTRATION, *OWN[role]):
        with client_of(server, role) as client, pytest.raises(ResponseError, match=REFUSED):
            client.execute_command(*command)
            pytest.fail(f"{role} may {command}")


def test_each_role_may_run_every_command_of_its_scripts(server: Valkey) -> None:
    """Also of scripts that no test here runs: where one is missing, users.acl must grow."""
    scripts = ROOT / "worker" / "wire" / "scripts"
    of_worker = [path.stem for path in scripts.glob("*.lua")]
    callers = [*(ROOT / "worker" / "wire").glob("*.py"), *(ROOT / "api").glob("*.py")]
    of_api = re.findall(r'acall\(\s*[\w.]+,\s*"(\w+)"', "".join(p.read_text() for p in callers))
    assert {"enqueue", "rate_limit"} <= set(of_api) and "claim" not in of_api
    texts = {
        "worker": [(scripts / f"{name}.lua").read_text() for name in of_worker],
        "api": [(scripts / f"{name}.lua").read_text() for name in ("lib", *of_api)],
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
    with client_of(server, "api") as client, pytest.raises(ResponseError, match=REFUSED):
        JobStore(client, "thief").claim([QUEUE], 1)


def test_metrics_may_count_what_waits_and_nothing_more(server: Valkey) -> None:
    with server.connect() as admin:
        admin.rpush(keys.queue(QUEUE), "a", "b")
        admin.zadd(f"rq:failed:{QUEUE}", {"x": 1})
    with client_of(server, "metrics") as client:
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
    text = rendered({"api": "p", "admin": "q"})
    assert re.findall(r"(?m)^user (\S+)", text) == ["default", "admin", "api"]
    with (
        pytest.raises(AssertionError, match="has stopped"),
        running_valkey(conf=f"aclfile {ACL / 'users.acl'}\n"),
    ):
        pass
