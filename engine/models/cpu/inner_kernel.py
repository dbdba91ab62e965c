"""Functions that only kernels call: machine code within each of them, and never alone.

numba makes every function ready to be called from Python: it is optimised, translated and kept on
disk, and then all of that is done again within whatever calls it, for a kernel holds the code of
all that it calls. Two fifths of the time that kernels took to compile went there.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, NoReturn

from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher


class InnerKernel(CPUDispatcher):
    """A function that is compiled for each combination of types with which kernels call it."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        options = {**options, "nopython": True, "no_cpython_wrapper": True}
        super().__init__(function, targetoptions=options, pipeline_class=_InnerCompiler)

    def __call__(self, *_: object) -> NoReturn:
        raise TypeError(f"{self.py_func.__name__} is called by kernels alone")

    def get_call_template(self, args: Seq[Any], kws: Any) -> Any:
        """A constant is a number like others: numba would compile all behind it for each anew."""
        return super().get_call_template(tuple(map(types.unliteral, args)), kws)


class _InnerCompiler(Compiler):
    """numba's own, but for where the code goes."""

    def define_pipelines(self) -> Any:
        state = self.state
        make: Any = _InnerCode
        state.library = make(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()  # type: ignore[no-untyped-call] # numba has few types


class _InnerCode(JITCodeLibrary):
    """Code as numba wrote it, with that of all that it calls."""

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0  # there is none

    @property
    def codegen(self) -> Any:
        return self  # which is asked for no more than the next

    def set_env(self, env_name: str, env: Any) -> None:
        """There is no machine code yet whose environment this would be."""
