"""TLS in front of a server that has none: certificates made on the spot, and a relay."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """Files of one authority, of a client that it vouches for, and of an authority nobody knows."""

    ca: Path
    client: Path
    other_ca: Path
    server_context: ssl.SSLContext


def make_certificates(folder: Path) -> Certificates:
    """Make the files; the server's name is `localhost` alone, and it asks clients for theirs."""
    authority, other = trustme.CA(), trustme.CA()
    ca, client, other_ca = folder / "ca.pem", folder / "client.pem", folder / "other.pem"
    authority.cert_pem.write_to_path(str(ca))
    other.cert_pem.write_to_path(str(other_ca))
    authority.issue_cert("worker@example.org").private_key_and_cert_chain_pem.write_to_path(
        str(client)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return Certificates(ca, client, other_ca, context)


@contextlib.contextmanager
def tls_relay(context: ssl.SSLContext, socket_path: Path) -> Iterator[int]:
    """Hand on what comes by TLS to a unix socket; yields the loopback port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    relay = _Relay(socket_path)

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(relay.serve, "127.0.0.1", ssl=context)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(20)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        asyncio.run_coroutine_threadsafe(relay.close(server), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


class _Relay:
    """Two copying tasks for each connection."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        back, forth = await asyncio.open_unix_connection(str(self._socket_path))
        copies = [
            asyncio.ensure_future(_copy(reader, forth)),
            asyncio.ensure_future(_copy(back, writer)),
        ]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()
            for end in (forth, writer):
                end.close()
                with contextlib.suppress(OSError, ssl.SSLError):
                    await end.wait_closed()

    async def close(self, server: asyncio.Server) -> None:
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # transports of TLS say goodbye


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
