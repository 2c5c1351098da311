"""open_clip, imported when something of it is needed: it takes seconds, and many processes of a sweep only pass settings on."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
_WANTED = (COMPILER, f"{COMPILER}.utils")


@functools.cache
def open_clip() -> Any:
    """The library, without torch's compiler, which is most of what its import would take.

    torchvision and timm, which open_clip imports, import the compiler for two functions by which they keep a few of their own out of it.
    Here both wait for their first call; nothing else of any library changes.
    """
    if not {"torchvision", "timm", COMPILER} & set(sys.modules):
        sys.modules.update({name: _Deferred(name) for name in _WANTED})
    try:
        return importlib.import_module("open_clip")
    finally:
        _end_deferral()


class _Deferred(ModuleType):
    """In the place of a module of the compiler: the module itself as soon as anything else than those two functions is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):  # `inspect` and `import` look for many
            raise AttributeError(name)
        deferred = {"disable": _disable, "is_compile_supported": _is_compile_supported}
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


def _disable(function: Callable[..., Any] | None = None, *arguments: Any, **named: Any) -> Callable[..., Any]:
    if function is None:
        return lambda function: _disable(function, *arguments, **named)

    @functools.wraps(function)
    def wrapper(*inputs: Any, **options: Any) -> Any:
        return _compiler(COMPILER).disable(function, *arguments, **named)(*inputs, **options)

    return wrapper
