"""open_clip, imported when something of it is needed: it takes seconds, and many processes of a sweep only pass settings on."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from core.compiler import compiler_deferred


@functools.cache
def open_clip() -> Any:
    """The library, without torch's compiler, which torchvision and timm would import with it: most of what the import would take."""
    with compiler_deferred():
        return importlib.import_module("open_clip")
