"""What the engines run: anything with a key and a `publish` that makes its artifact unless it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from sweep.store.artifacts import Artifact, Store
from sweep.store.files import UnreachableError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

MAX_LOSSES = 20
"""Times that a piece of work is begun again because its process or node died: what kills it then is no accident."""
OUTAGE_S = 600.0
"""How long a bucket may fail to answer before that ends a sweep."""
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


class Work(Protocol):
    """A stage of a sweep, as the engines see it (`sweep.stages.stage.Stage`)."""

    kind: ClassVar[str]
    engine: ClassVar[Any]
    uses_device: ClassVar[bool]
    unit: ClassVar[str]
    is_index: ClassVar[bool]

    @property
    def key(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> float: ...

    @property
    def inputs(self) -> Sequence[Work]: ...

    @property
    def also_reads(self) -> Sequence[Work]: ...

    @property
    def num_workers(self) -> int: ...

    def publish(self, store: Store, wait: bool = True, on_begin: Callable[[], None] | None = None) -> Artifact | None: ...

    def assist(self, store: Store) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What became of a piece of work on its worker. meta: of its manifest; None while another process computes it. error: as raised."""

    meta: Mapping[str, Any] | None
    error: BaseException | None = None


class WorkLostError(Exception):
    """Work whose processes died each time that it was begun."""

    @staticmethod
    def of(what: str, error: BaseException, num_times: int = MAX_LOSSES) -> WorkLostError:
        fix = "look in Ray's logs for what ends it (memory, often: fewer --workers a node), then give the same command again"
        return WorkLostError(f"what computed {what} died, {num_times} times and more ({error}): {fix}; what is finished stays")


OnDone = Callable[[Work], None]
"""Called in the driver for each piece of work whose artifact is there."""


def attempt(work: Work, store: Store, wait: bool = True, on_begin: Callable[[], None] | None = None) -> Outcome:
    """Publish a piece of work. An error comes back as it was: raised in an engine's worker it would reach the driver without its cause.

    An outage of the store is waited for, but where others wait for what `on_begin` tells them: they could not begin again.
    """
    try:
        publish = lambda: work.publish(store, wait, on_begin)  # noqa: E731
        artifact = publish() if on_begin else through_outages(publish)
    except Exception as error:
        return Outcome(None, error)
    return Outcome(None if artifact is None else dict(artifact.manifest["meta"]))


def through_outages(call: Callable[[], _T]) -> _T:
    """The result of a call that uses the store, begun again while a bucket cannot be reached: for OUTAGE_S without a break at most."""
    since, pause = 0.0, _FIRST_PAUSE_S
    while True:
        began = time.monotonic()
        try:
            return call()
        except UnreachableError as error:
            now = time.monotonic()
            if not since or now - began > OUTAGE_S / 10:  # it went on for a while: this is another outage
                since, pause = now, _FIRST_PAUSE_S
            if now - since > OUTAGE_S:
                raise
            _log.warning("%s; tried again in %.0f s", error, pause)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def attempt_together(work: Work, store: Store) -> Outcome:
    """`attempt` by all processes of torch's process group: the first one publishes, the others assist it if it is it that computes.

    An error of one leaves the others waiting: whoever runs them must end them.
    """
    import torch

    from core.data_parallel import DataParallel

    workers = DataParallel.joined()
    device = torch.device("cuda" if "nccl" in torch.distributed.get_backend() else "cpu")
    if not workers.is_first:
        try:
            if workers.first_says(False, device):
                work.assist(store)
        except Exception as error:
            return Outcome(None, error)
        return Outcome(None)
    begun: list[bool] = []
    outcome = attempt(work, store, False, lambda: begun.append(workers.first_says(True, device)))
    if not begun:
        workers.first_says(False, device)
    return outcome
