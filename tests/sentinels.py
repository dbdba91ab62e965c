"""A master, a replica and three sentinels, all real and all under deploy/redis/users.acl."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import redis

from tests.acl_server import PASSWORDS, refusals, rendered
from tests.valkey import Valkey, die_with_parent, free_port, running_valkey, server_binary

SERVICE = "mymaster"
PASSWORD = "of-the-sentinels"
WAIT_S = 30.0
NUM_SENTINELS = 3

# Half a second instead of the usual tens: it is not the sentinels that are tested.
CONF = """\
bind 127.0.0.1
port {port}
dir {folder}
logfile {folder}/log
requirepass {password}
sentinel sentinel-pass {password}
sentinel monitor {service} 127.0.0.1 {master} 2
sentinel auth-user {service} sentinel
sentinel auth-pass {service} {password_there}
sentinel down-after-milliseconds {service} 500
sentinel failover-timeout {service} 3000
"""


class Watched:
    """Two servers, one of which is the master, and those who watch over them."""

    def __init__(self, first: Valkey, second: Valkey, ports: list[int]) -> None:
        self.first = first
        self.second = second
        self._ports = ports

    def url(self, role: str) -> str:
        """Return the address for a role of users.acl."""
        # The first sentinel is one that is not there: the next one must do.
        hosts = ",".join(f"127.0.0.1:{port}" for port in [free_port(), *self._ports])
        user = f"{role}:{PASSWORDS[role]}"
        return f"redis+sentinel://{user}@{hosts}/{SERVICE}/0?sentinel_password={PASSWORD}"

    def master_port(self) -> int:
        with redis.Redis(port=self._ports[0], password=PASSWORD) as client:
            return int(client.sentinel_master(SERVICE)["port"])

    def wait_until_ready(self) -> None:
        """Wait until every sentinel knows the others and a replica that could take over."""
        for port in self._ports:
            with redis.Redis(port=port, password=PASSWORD) as client:
                _wait_until(lambda c=client: _is_complete(c), "the sentinels know each other")

    def wait_for_failover(self) -> None:
        _wait_until(lambda: self.master_port() == self.second.port, "the replica is master")

    def refusals(self) -> list[tuple[str, str, str]]:
        """Return what the server that is master now has refused to any role."""
        with self.second.connect() as admin:
            return refusals(admin)

    def wait_until_replicated(self) -> None:
        """Wait until the replica has all that the master has written so far."""
        with self.first.connect() as client:
            client.set("dfl:mark", 1, ex=60)
            assert client.wait(1, 5000) == 1


@contextmanager
def watched_servers() -> Iterator[Watched]:
    with ExitStack() as stack:
        users = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "users.acl"
        users.write_text(rendered(PASSWORDS))
        both = f"aclfile {users}\nmasteruser replica\nmasterauth {PASSWORDS['replica']}\n"
        first = stack.enter_context(_server(both))
        second = stack.enter_context(_server(f"{both}replicaof 127.0.0.1 {first.port}\n"))
        ports = [stack.enter_context(_sentinel(first.port)) for _ in range(NUM_SENTINELS)]
        watched = Watched(first, second, ports)
        watched.wait_until_ready()
        yield watched


def _server(conf: str) -> AbstractContextManager[Valkey]:
    return running_valkey(tcp=True, conf=conf, password=PASSWORDS["admin"])


@contextmanager
def _sentinel(master_port: int) -> Iterator[int]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="dfl") as folder:
        conf = Path(folder) / "conf"
        conf.write_text(
            CONF.format(
                port=port,
                folder=folder,
                service=SERVICE,
                master=master_port,
                password=PASSWORD,
                password_there=PASSWORDS["sentinel"],
            )
        )
        process = subprocess.Popen(
            [server_binary(), str(conf), "--sentinel"], preexec_fn=die_with_parent
        )
        try:
            yield port
        finally:
            process.kill()
            process.wait()


def _is_complete(client: redis.Redis) -> bool:
    try:
        state = client.sentinel_master(SERVICE)
    except redis.RedisError:
        return False
    return state["num-other-sentinels"] == NUM_SENTINELS - 1 and state["num-slaves"] == 1


def _wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)
