"""Files of weights that others wrote, opened without running what is in them: names first, each tensor when it is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_IN_DIRECTORY = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "visual.safetensors",
)
"""What the weights are called in a directory: open_clip's, Hugging Face's (whole or in parts), a sweep's own."""
_CONFIGURATIONS = ("open_clip_config.json", "config.json")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Under what training scripts keep the weights beside optimizer and epoch."""
_UNREADABLE = (UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError)
"""What torch.load may raise on bytes that it did not write."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the fix."""


@dataclass(frozen=True)
class CheckpointFile:
    """Named tensors of a checkpoint. configuration: of the directory that they lie in, {} without one; files: that hold the weights."""

    path: Path
    tensors: Mapping[str, Callable[[], Tensor]] = field(repr=False)
    configuration: Mapping[str, Any]
    files: tuple[Path, ...]


def open_checkpoint(path: Path) -> CheckpointFile:
    """A file (safetensors, or what torch.load reads with weights_only) or a directory in open_clip's or Hugging Face's layout.

    Raises CheckpointError where there is none, it is cut short, or it holds more than weights: nothing in it is run.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}: give a file (.safetensors, .pt, .bin) or a directory that holds one")
    if not path.is_dir():
        return CheckpointFile(path, _tensors(path), {}, (path,))
    file = next((path / name for name in _IN_DIRECTORY if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} holds no weights: it needs one of {', '.join(_IN_DIRECTORY)}; or give the file itself")
    configuration = next((_read_json(path / name) for name in _CONFIGURATIONS if (path / name).is_file()), {})
    parts = _parts(file) if file.suffix == ".json" else (file,)
    return CheckpointFile(path, {k: v for part in parts for k, v in _tensors(part).items()}, configuration, parts)


def _parts(index: Path) -> tuple[Path, ...]:
    """The files that an index names, which lie beside it."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise CheckpointError(f"{index} names no files beside it: save the model again")
    return tuple(index.parent / name for name in sorted(set(names.values())))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): save the model again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object: save the model again")
    return content


def _tensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    if path.suffix == ".safetensors":
        return _safetensors(path)
    state = _unpickled(path)
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    found = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not found:
        raise CheckpointError(f"{path} holds no named weights: save `model.state_dict()`")
    return {str(name): partial(_itself, tensor) for name, tensor in found.items()}


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _safetensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    try:
        file = safe_open(path, framework="pt")
        names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): it is cut short or no safetensors file; copy or save it again") from error
    return {name: partial(file.get_tensor, name) for name in names}


def _unpickled(path: Path) -> Any:
    """What torch.save wrote, weights only: a pickle that names anything else is refused before that is imported."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=is_zipfile(path))
    except _UNREADABLE as error:
        text = str(error)
        refused = re.search(r"GLOBAL ([\w.]+)", text)
        if isinstance(error, UnpicklingError) and refused:
            raise CheckpointError(
                f"{path} is a pickle that holds more than weights ({refused[1]}), and unpickling could run code: nothing was run. "
                "Where you trust it, save `model.state_dict()` alone from the program that wrote it, best as safetensors"
            ) from error
        reason = " ".join(text.split())[:200]
        told = f"{type(error).__name__}: {reason}"
        raise CheckpointError(f"{path} cannot be read ({told}): it is cut short or damaged; copy or save it again") from error
