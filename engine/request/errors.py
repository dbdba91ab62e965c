"""Faults of a request: the caller's to mend, and harmless to every other sequence."""

from __future__ import annotations


class InvalidRequestError(ValueError):
    """A request that can never run; `param` names the field, `code` the kind of fault."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
