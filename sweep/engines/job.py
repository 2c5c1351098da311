"""What the engines run: anything with a key and a `publish` that makes its artifact unless it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from sweep.store.artifacts import Artifact, Store


class Work(Protocol):
    """A stage of a sweep, as the engines see it (`sweep.stages.stage.Stage`)."""

    kind: ClassVar[str]
    engine: ClassVar[Any]
    uses_device: ClassVar[bool]
    unit: ClassVar[str]

    @property
    def key(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> float: ...

    @property
    def inputs(self) -> Sequence[Work]: ...

    @property
    def num_workers(self) -> int: ...

    def publish(self, store: Store, wait: bool = True, on_begin: Callable[[], None] | None = None) -> Artifact | None: ...

    def assist(self, store: Store) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What became of a piece of work on its worker. meta: of its manifest; None while another process computes it. error: as raised."""

    meta: Mapping[str, Any] | None
    error: BaseException | None = None


OnDone = Callable[[Work], None]
"""Called in the driver for each piece of work whose artifact is there."""


def attempt(work: Work, store: Store, wait: bool = True, on_begin: Callable[[], None] | None = None) -> Outcome:
    """Publish a piece of work. An error comes back as it was: raised in an engine's worker it would reach the driver without its cause."""
    try:
        artifact = work.publish(store, wait, on_begin)
    except Exception as error:
        return Outcome(None, error)
    return Outcome(None if artifact is None else dict(artifact.manifest["meta"]))


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
