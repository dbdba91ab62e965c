"""What a question breaks, it breaks for itself alone."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from tests.fakes import FakeEngine, FakeTokenizer
from tests.worker_bench import API_ID, MODEL
from worker.question_desk import QuestionDesk
from worker.wire import codec, keys, questions
from worker.wire.messages import Answered, Event, Rejected
from worker.wire.questions import DescribeTokenizer, Detokenize, Question


class _Fragile(FakeTokenizer):
    def decode(self, token_ids: Sequence[int]) -> str:
        raise OverflowError("a token too far")


def test_a_question_that_breaks_the_tokenizer_is_refused_and_the_next_one_answered(
    redis_client: redis.Redis,
) -> None:
    engine = FakeEngine()
    engine.tokenizer = _Fragile()
    for name, about in (("q1", Detokenize([1])), ("q2", DescribeTokenizer())):
        question = Question(name, API_ID, about)
        redis_client.rpush(keys.questions(MODEL), questions._encode(question))
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.reply_channel(API_ID))
        pubsub.get_message(timeout=5)
        QuestionDesk(redis_client, engine, "w1").answer_all()
        refused, answered = _heard(pubsub), _heard(pubsub)
    assert isinstance(refused, Rejected)
    assert refused.status == 500
    assert "far" not in refused.message
    assert isinstance(answered, Answered)


def _heard(pubsub: redis.client.PubSub) -> Event:
    message = None
    while message is None:
        message = pubsub.get_message(timeout=5)
    (event,) = codec.decode_frame(message["data"]).events
    return event
