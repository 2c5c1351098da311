"""`python tests/driver_without_models.py all_pairs ...`: the command line in a process that can build no model and see no pixel.

The driver of a sweep plans, waits and writes down: it may be a small machine without a GPU. Here whatever would load a base, make a
classifier, open a picture or read pixels raises, in this process alone: Ray's workers are new processes that import everything anew.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import PIL.Image

import core.model
from core.data.picture_shards import PictureShards


class DriverAtWork(BaseException):
    """The driver did what is a worker's to do. Nothing catches it on the way."""


def forbid(owner: Any, name: str) -> None:
    where = f"{owner.__module__ if isinstance(owner, type) else owner.__name__}.{name}"
    assert callable(getattr(owner, name)), f"there is no {where} any more"

    def refuse(*arguments: object, **named: object) -> NoReturn:
        raise DriverAtWork(f"the driver called {where}")

    setattr(owner, name, refuse)


def forbid_models_and_pixels() -> None:
    """Before `sweep` is imported, which binds some of these names."""
    assert not any(name.split(".")[0] == "sweep" for name in sys.modules), "sweep was imported already"
    forbid(core.model, "load_base")
    forbid(core.model.SelfExplainingClassifier, "__init__")
    forbid(core.model.Preprocessing, "pixels")
    forbid(core.model.Preprocessing, "normalise")
    forbid(PictureShards, "gather")
    forbid(PIL.Image, "open")


if __name__ == "__main__":
    forbid_models_and_pixels()
    from sweep.run import main

    sys.exit(main())
