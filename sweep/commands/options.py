"""Options that several commands share, each said once."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from core.merging.parameters import ParameterError
from sweep.experiment.config import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Places:
    """Where a command runs and writes. None: this machine's default."""

    store: str | None = None
    address: str | None = None
    tracking_uri: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float = 1.0
    threads_per_worker: int | None = None


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Ends an option's help with its default, where there is one and the text does not tell it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def add_places(parser: argparse.ArgumentParser, store: str | None, store_help: str, tracking: bool = True) -> None:
    """Where to run: `places_from` reads it."""
    where = parser.add_argument_group("where")
    where.add_argument("--store", default=store, help=store_help)
    if tracking:
        where.add_argument("--tracking-uri", help="MLflow tracking URI (default: what `mlflow ui` opens here)")
    where.add_argument("--address", help="Ray cluster to run on: auto, or ray://... (default: start Ray here)")
    where.add_argument("--workers", type=int, help="worker processes that an engine keeps busy")
    where.add_argument("--threads-per-worker", type=int, help="CPU threads of each (default: the cores shared out)")
    where.add_argument("--gpus-per-worker", type=float, default=1.0, help="may be a fraction")
    where.add_argument("--device", choices=("cpu", "cuda"))
    where.add_argument("--dry-run", action="store_true", default=False, help="check the input, say what would run, and stop")


def places_from(options: argparse.Namespace) -> Places:
    """Raises ConfigError for numbers that are none of workers."""
    for name in ("workers", "threads_per_worker"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if not 0.0 < options.gpus_per_worker < math.inf:
        raise ConfigError(f"--gpus-per-worker must be positive, not {options.gpus_per_worker}")
    return Places(
        options.store,
        options.address,
        getattr(options, "tracking_uri", None),
        options.workers,
        options.gpus_per_worker,
        options.threads_per_worker,
    )


def changed(config: Any, **changes: Any) -> Any:
    """The dataclass with the changes that are not None. Raises ConfigError for a value that it refuses."""
    names = {f.name for f in fields(config)}
    assert set(changes) <= names, set(changes) - names
    try:
        return replace(config, **{k: v for k, v in changes.items() if v is not None})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def parsed(option: str, parse: Callable[[str], T], text: str | None) -> T | None:
    """What an option names with its parameters. Raises ConfigError, with what there is, for what `parse` refuses."""
    try:
        return None if text is None else parse(text)
    except ParameterError as error:
        raise ConfigError(f"{option}: {error}") from error


def numbers(text: str | None) -> tuple[float, ...] | None:
    """`0.1,0.5` -> (0.1, 0.5); `0.1:0.9:0.1` -> the range, with its end where a step meets it. Raises ConfigError for what is neither."""
    if text is None:
        return None
    with contextlib.suppress(ValueError, OverflowError, ZeroDivisionError):
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            found = tuple(round(start + i * step, 10) for i in range(math.floor((stop - start) / step + 1e-9) + 1))
        else:
            found = tuple(float(part) for part in text.split(","))
        if found and all(map(math.isfinite, found)):
            return found
    raise ConfigError(f"{text!r} is no list of finite numbers: write 0.1,0.5,0.9 or 0.1:0.9:0.1")


def check_directory(option: str, directory: Path) -> None:
    """Raise ConfigError unless files can be written to a directory, which may have to be made. Makes and writes nothing."""
    absolute = directory.absolute()
    nearest = next(place for place in (absolute, *absolute.parents) if os.path.lexists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {directory}: {nearest} is no directory that can be written to: give another {option}")


def check_device(device: str) -> None:
    """Raise ConfigError for a GPU that is not there, before one is needed."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this machine has no GPU that torch sees: leave --device out")
