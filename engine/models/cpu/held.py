"""What kernels are given again and again, made known to them once.

To look up the types of some fifty arrays and to unpack them takes longer than a small layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.experimental import structref
from numba.extending import intrinsic

from engine.models.cpu.kernel import kernel
from engine.models.cpu.rows import Packed

_LEAST_ROWS = 64


@structref.register
class _HeldType(types.StructRef):
    """numba's type of a `Held`."""


class Held(structref.StructRefProxy):
    """A value that a kernel finds as `held.value`, for the price of one argument."""


structref.define_proxy(Held, _HeldType, ["value"])


@kernel
def hold(value):
    """Of tuples, arrays and numbers. Whoever calls keeps the arrays alive: they are not counted."""
    return Held(_borrowed(value))


@intrinsic
def _borrowed(typing_context, value):
    """The same arrays, uncounted: threads that count them together take turns at it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _disown(context, builder, signature.args[0], args[0])

    return value(value), generate


def _disown(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    parts: Any = kind if isinstance(kind, types.BaseTuple) else ()
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        return array._getvalue()
    for index, part in enumerate(parts):
        own = _disown(context, builder, part, builder.extract_value(value, index))
        value = builder.insert_value(value, own, index)
    return value


class HeldRoom:
    """A `Held` with room for the rows and positions of a forward, made anew for larger ones."""

    def __init__(self) -> None:
        self._num_rows = self._num_positions = 0
        self._value: object = None  # whose arrays are not the handle's
        self._held: Held | None = None

    def of(self, packed: Packed, make: Callable[[int, int], object]) -> Held:
        """With room for these spans; `make` is given numbers of rows and of positions."""
        held = self._held
        if (
            held is None
            or packed.num_rows > self._num_rows
            or packed.num_positions > self._num_positions
        ):
            num_rows = max(self._num_rows, _LEAST_ROWS, _power(packed.num_rows))
            num_positions = max(self._num_positions, _power(packed.num_positions))
            value = make(num_rows, num_positions)
            held = hold(value)
            # Not before all has gone well: a kernel looks no more than this at what has room.
            self._num_rows, self._num_positions = num_rows, num_positions
            self._value, self._held = value, held
        return held


def _power(number: int) -> int:
    """Of two, the least that is no less."""
    return 1 << (number - 1).bit_length()
