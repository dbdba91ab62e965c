"""A server under deploy/redis/users.acl, and its users as a test sees them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.valkey import Valkey, running_valkey

ROOT = Path(__file__).parents[1]
ACL = ROOT / "deploy" / "redis"
ROLES = ("admin", "api", "worker", "dashboard", "metrics", "replica", "sentinel")
PASSWORDS = {role: f"{role}-s3cr3t!" for role in ROLES}


@contextmanager
def running_acl_server() -> Iterator[Valkey]:
    """Run a server that knows every role; `connect` comes in as `admin`."""
    with tempfile.TemporaryDirectory(prefix="dfl") as folder:
        path = Path(folder) / "users.acl"
        path.write_text(rendered(PASSWORDS))
        conf = f"aclfile {path}\n"
        with running_valkey(tcp=True, conf=conf, password=PASSWORDS["admin"]) as server:
            yield server


def rendered(passwords: dict[str, str]) -> str:
    given = {f"REDIS_{role.upper()}_PASSWORD": word for role, word in passwords.items()}
    done = subprocess.run(
        ["sh", str(ACL / "users.sh")],
        env={**os.environ, **given}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def url_of(server: Valkey, role: str) -> str:
    return f"redis://{role}:{PASSWORDS[role]}@127.0.0.1:{server.port}/0"


def client_of(server: Valkey, role: str) -> redis.Redis:
    return redis.Redis.from_url(url_of(server, role))


def refusals(admin: redis.Redis) -> list[tuple[str, str, str]]:
    return [
        (entry["username"], entry["reason"], entry["object"])
        for entry in admin.acl_log()
        if entry["username"] in ROLES
    ]
