"""torch's compiler, imported when something is compiled: that takes a second, in every process of a sweep that loads or trains a model."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
_WANTED = (COMPILER, f"{COMPILER}.utils")


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """A context, or a function's decorator, in which libraries do without the compiler where all that they ask of it is to keep out of it.

    torchvision and timm do so when they are imported, and torch's optimizers in every step. Here they get functions that do nothing as long
    as nobody has imported the compiler, so that nothing can be being compiled; whatever else is asked of it imports it.
    """
    if COMPILER not in sys.modules:
        sys.modules.update({name: _Deferred(name) for name in _WANTED})
    try:
        yield
    finally:
        _end_deferral()


class _Deferred(ModuleType):
    """In the place of a module of the compiler: the module itself as soon as anything else than a few functions is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):  # `inspect` and `import` look for many
            raise AttributeError(name)
        deferred = {"disable": _disable, "graph_break": _graph_break, "is_compile_supported": _is_compile_supported}
        return deferred[name] if name in deferred else getattr(_compiler(self.__name__), name)


def _end_deferral() -> None:
    for name in _WANTED:
        if isinstance(sys.modules.get(name), _Deferred):
            del sys.modules[name]


def _compiler(name: str) -> Any:
    _end_deferral()
    return importlib.import_module(name)


def _is_compile_supported(device: str) -> bool:
    return bool(_compiler(f"{COMPILER}.utils").is_compile_supported(device))


def _graph_break(*arguments: Any, **named: Any) -> None:
    """Nothing to break: who compiles has imported the compiler, and gets its own."""


def _disable(function: Callable[..., Any] | None = None, *arguments: Any, **named: Any) -> Callable[..., Any]:
    if function is None:
        return lambda function: _disable(function, *arguments, **named)
    kept_out: Callable[..., Any] | None = None

    @functools.wraps(function)
    def wrapper(*inputs: Any, **options: Any) -> Any:
        nonlocal kept_out
        if kept_out is None:
            if isinstance(sys.modules.get(COMPILER), _Deferred | None):
                return function(*inputs, **options)
            kept_out = _compiler(COMPILER).disable(function, *arguments, **named)
        return kept_out(*inputs, **options)

    return wrapper
