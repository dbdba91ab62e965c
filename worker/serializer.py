"""A pickle that holds plain data only: RQ's tools can read it, and reading it runs no code."""

from __future__ import annotations

import io
import pickle
from typing import Any, NoReturn


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"refused to import {module}.{name} for a pickle from Redis")


class RestrictedSerializer:
    """RQ's serializer protocol. Whoever can write to Redis must not own this process."""

    @staticmethod
    def dumps(obj: object) -> bytes:
        data = pickle.dumps(obj, protocol=5)
        # What only an import could read back must not be written in the first place.
        RestrictedSerializer.loads(data)
        return data

    @staticmethod
    def loads(data: bytes) -> Any:
        return _PlainUnpickler(io.BytesIO(data)).load()
