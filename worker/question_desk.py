"""Answers questions about the model's tokenizer."""

from __future__ import annotations

import logging

from redis import Redis

from engine.request.errors import InvalidRequestError
from worker.chat_prompt import chat_prompt
from worker.engine_port import EnginePort, TokenizerPort
from worker.translate import rejection
from worker.wire import codec, keys, questions
from worker.wire.messages import Answered, Chat, Frame, Rejected
from worker.wire.questions import DescribeTokenizer, Detokenize, Question, Tokenize

logger = logging.getLogger(__name__)


class QuestionDesk:
    """Belongs to the Redis I/O thread, as the tokenizer does."""

    def __init__(self, redis: Redis, engine: EnginePort, worker_name: str) -> None:
        self._redis = redis
        self._model = engine.model_name
        self._tokenizer = engine.tokenizer
        self._worker_name = worker_name

    def answer_all(self) -> bool:
        """Answer what waits; say whether there may be more."""
        taken = questions.take(self._redis, self._model)
        for question in taken:
            frame = Frame(self._worker_name, [_answer(question, self._tokenizer)])
            self._redis.publish(keys.reply_channel(question.api_id), codec.encode(frame))
        return len(taken) == questions.MAX_TAKEN


def _answer(question: Question, tokenizer: TokenizerPort) -> Answered | Rejected:
    name = question.question_id
    try:
        match question.about:
            case Tokenize() as wanted:
                return _tokens(name, wanted, tokenizer)
            case Detokenize(token_ids=token_ids):
                return Answered(name, text=tokenizer.decode(token_ids))
            case DescribeTokenizer():
                return Answered(name, facts=tokenizer.describe())
    except InvalidRequestError as error:
        return rejection(name, error)
    except Exception:  # boundary: one question; what it breaks must not end the worker
        logger.exception("a question cannot be answered")
        return Rejected(name, 500, "The worker failed.", code="internal_error")


def _tokens(name: str, wanted: Tokenize, tokenizer: TokenizerPort) -> Answered:
    if isinstance(wanted.input, Chat):
        token_ids = chat_prompt(wanted.input, tokenizer)
    else:
        (text,) = wanted.input.prompts
        assert isinstance(text, str)
        token_ids = tokenizer.encode(text, add_bos=wanted.add_bos)
    pieces = [tokenizer.token_bytes(one).decode(errors="replace") for one in token_ids]
    return Answered(name, token_ids, pieces if wanted.wants_pieces else None)
