"""The server's address as its clients see it: is it free, is it ready, how is it used."""

from __future__ import annotations

import errno
import json
import socket
import urllib.request
from typing import Any

from worker.serve_plan import ServePlan
from worker.settings import SettingsError

ASK_TIMEOUT_S = 2.0
REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # who listens everywhere listens here, too

# No proxy: the server is on this very machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class FrontDoor:
    """Asks the API what any client could ask it."""

    def __init__(self, plan: ServePlan) -> None:
        self._plan = plan
        host = REACHED_AT.get(plan.host, plan.host)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{plan.port}"

    def check_is_free(self) -> None:
        """Raise SettingsError if the API could not listen there."""
        host, port = self._plan.host, self._plan.port
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SettingsError(
                    f"port {port} is taken; stop what uses it, or choose another: --port {port + 1}"
                ) from None
            raise SettingsError(f"cannot listen on {host}, port {port}: {error}") from None

    def is_ready(self) -> bool:
        return self._ask("/ready") is not None

    def announcement(self, own_queue: str | None) -> str:
        """Return what a newcomer needs to send the first request.

        `own_queue`: the address of the queue that `serve` brought along. Another's is not shown:
        it may hold a password.
        """
        models = self.models()
        model = models[0] if models else "MODEL"
        header = ' -H "Authorization: Bearer $VDIFF_API_KEY"' if self._plan.api_key else ""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        return (
            f"\ndfastllm is ready at {self.url}/v1 with {', '.join(models) or 'no model'}\n\n"
            f"  curl {self.url}/v1/chat/completions{header} "
            f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'\n"
            f'  OpenAI(base_url="{self.url}/v1", api_key="{self._key_hint()}")    '
            f"# from openai import OpenAI\n"
            f"  rq info --url {own_queue or '$VDIFF_REDIS_URL'}    # the queue\n\n"
        )

    def models(self) -> list[str]:
        answer = self._ask("/v1/models")
        return [] if answer is None else [str(model["id"]) for model in answer.get("data", [])]

    def _key_hint(self) -> str:
        return "<your key>" if self._plan.api_key else "none"

    def _ask(self, path: str) -> dict[str, Any] | None:
        """Return the JSON that the API answers; None while it does not, or not with success."""
        request = urllib.request.Request(self.url + path)
        if self._plan.api_key:
            request.add_header("Authorization", f"Bearer {self._plan.api_key}")
        try:
            with _opener.open(request, timeout=ASK_TIMEOUT_S) as response:
                answer = json.load(response)
        except (OSError, ValueError):  # refused, not ready (an HTTPError is an OSError), or no JSON
            return None
        return answer if isinstance(answer, dict) else {}
