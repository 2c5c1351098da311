"""Keys of artifacts: the hash of everything that an artifact depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def artifact_key(stage: str, version: int, params: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """Key of an artifact: sha256 (40 hex digits) over canonical JSON. 1 and 1.0 are different parameters, 0.0 and -0.0 are not.

    Raises TypeError for parameters that JSON does not hold, ValueError for NaN and infinities.
    """
    assert not isinstance(inputs, str), "inputs are a sequence of keys"
    document = {"stage": stage, "version": version, "params": canonical(params), "inputs": list(inputs)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def canonical(value: Any) -> Any:
    """Parameters in the one spelling that JSON has for them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return canonical(dataclasses.asdict(value))
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"a parameter is {value}: keys hold finite numbers only")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError("parameter names must be strings")
        return {k: canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    raise TypeError(f"a {type(value).__name__} cannot be part of a key: use numbers, strings, lists and mappings")
