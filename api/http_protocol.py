"""uvicorn's HTTP protocol, with patience that ends: a slow or endless client holds nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_PATIENCE_S = 15.0  # from a request's first byte to the end of its head
BODY_PATIENCE_S = 60.0  # between two pieces of a body
READ_PATIENCE_S = 60.0  # that a client may leave what was sent to it unread
MAX_HEAD_BYTES = 64 * 1024


class PatientProtocol(HttpToolsProtocol):
    """Ends connections that send a head or a body too slowly, or do not read their answer."""

    _timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _num_head_bytes = 0
    _is_in_head = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(HEAD_PATIENCE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._num_head_bytes += len(data)
        super().data_received(data)
        # A head that came with all of its body has ended by now.
        if self._is_in_head and self._num_head_bytes > MAX_HEAD_BYTES:
            self._give_up()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._wait(HEAD_PATIENCE_S)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._is_in_head, self._num_head_bytes = False, 0
        self._wait(BODY_PATIENCE_S)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._wait(BODY_PATIENCE_S)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(READ_PATIENCE_S, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _wait(self, patience_s: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(patience_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        # Not `close`: that would wait until the client has read what is left.
        self.transport.abort()
