"""One server a module: a fake gateway behind real HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.api.fakes import MODEL, FakeGateway, polite, served


@pytest.fixture(scope="module")
def shared_gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture(scope="module")
def url(shared_gateway: FakeGateway) -> Iterator[str]:
    settings = {"accept_patience_s": 0.05, "queue_comment_s": 0.05, "ping_s": 0.05}
    with served(shared_gateway, **settings) as url:
        yield url


@pytest.fixture
def gateway(shared_gateway: FakeGateway) -> FakeGateway:
    """The server's gateway, with nothing left of the test before."""
    shared_gateway.script = polite
    shared_gateway.known = [MODEL]
    shared_gateway.refusal = None
    shared_gateway.served = True
    shared_gateway.jobs.clear()
    shared_gateway.priorities.clear()
    shared_gateway.cancelled.clear()
    shared_gateway.closed.clear()
    return shared_gateway


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client
