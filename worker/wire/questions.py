"""Questions about a tokenizer, which any worker of the model can answer at once, beside the queue.

A question is no job: it waits for no place, is in no registry, and is lost with whoever forgets it.
Who asks asks again, and in the end gives up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from worker.wire import keys
from worker.wire.messages import Chat, Prompts

if TYPE_CHECKING:
    import redis.asyncio
    from redis import Redis

KEPT_S = 30
MAX_TAKEN = 8  # at a time: nobody's output waits longer than for these


class Tokenize(Struct, frozen=True, tag="tokenize", omit_defaults=True):
    """Which tokens a prompt or a chat has; `input` holds one."""

    input: Prompts | Chat
    add_bos: bool = True
    wants_pieces: bool = False


class Detokenize(Struct, frozen=True, tag="detokenize"):
    token_ids: list[int]


class DescribeTokenizer(Struct, frozen=True, tag="describe_tokenizer"):
    """What a client must know to render chats and to count tokens by itself."""


Topic = Tokenize | Detokenize | DescribeTokenizer


class Question(Struct, frozen=True):
    question_id: str
    api_id: str
    about: Topic


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Question).decode


async def ask(redis: redis.asyncio.Redis, model: str, question: Question) -> None:
    """Lay a question before the workers of a model; one round trip."""
    key = keys.questions(model)
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.rpush(key, _encode(question))
        pipeline.expire(key, KEPT_S)
        pipeline.publish(keys.question_channel(model), b"")
        await pipeline.execute()


def take(redis: Redis, model: str) -> list[Question]:
    """Take the questions that wait; those that cannot be read are dropped."""
    taken: Any = redis.lpop(keys.questions(model), MAX_TAKEN)
    questions = []
    for data in taken or ():
        try:
            questions.append(_decode(data))
        except msgspec.DecodeError:
            continue
    return questions
