"""A stage: one artifact of a sweep, declared in one place: what it is, what it is made from, how it is computed and read.

The graph of a sweep is its stages with their inputs; the order of work follows from it. Nothing here knows an engine: a stage says
which one runs it, and `engines` runs whatever has a `publish`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from sweep.store.artifacts import Artifact, Store, artifact_key

EngineName = Literal["tasks", "shards", "training", "trials"]
"""tasks: plain Ray tasks; shards: Ray Data's actor pool; training: Ray Train; trials: Ray Tune."""


@dataclass(frozen=True)
class ChildRun:
    """What of a finished stage goes into MLflow, as a child of the sweep's run.

    stage: the tag to look for it by. key: the artifact's, once an experiment. started_s: seconds since the epoch. files: (local file,
    directory within the run). large_files: names of files of the artifact that are logged where the store is local, and named by key and
    link where it is a bucket. curves: metric -> (step, value) pairs.
    """

    stage: str
    key: str
    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    tags: Mapping[str, Any]
    started_s: float
    seconds: float
    files: Sequence[tuple[Path, str | None]] = ()
    large_files: Sequence[tuple[str, str | None]] = ()
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)


class Stage(ABC):
    """One artifact of a sweep. Subclasses are frozen dataclasses (compared by key) whose fields are its parameters and
    the stages it is made from.

    kind, version: in the key; the version is raised when the code changes what it computes. engine: which one runs it. uses_device:
    whether it runs on the sweep's device (a GPU, where there are some) or on a CPU alone. unit: what progress counts. is_index: whether it
    only tells of its inputs, so that who reads it reads their artifacts too.
    """

    kind: ClassVar[str]
    version: ClassVar[int]
    engine: ClassVar[EngineName] = "tasks"
    uses_device: ClassVar[bool] = False
    unit: ClassVar[str] = ""
    is_index: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called for people."""

    @property
    @abstractmethod
    def params(self) -> Mapping[str, Any]:
        """Everything besides the inputs that the artifact depends on."""

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The stages whose artifacts it is made from."""
        return ()

    @property
    def also_reads(self) -> tuple[Stage, ...]:
        """Stages that its inputs are made from whose artifacts it reads itself."""
        return ()

    @abstractmethod
    def compute(self, store: Store, directory: Path) -> Mapping[str, Any] | None:
        """Fill a directory with the artifact's files; what is returned goes into its manifest as `meta`."""

    @cached_property
    def key(self) -> str:
        return artifact_key(self.kind, self.version, self.params, [stage.key for stage in self.inputs])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def size(self) -> float:
        """How long it takes beside others of its kind: the longest are begun first."""
        return 1.0

    @property
    def num_workers(self) -> int:
        """Workers that compute it together (`assist`)."""
        return 1

    def assist(self, store: Store) -> None:
        """What each further worker does while the first one computes: the same, into a directory that nobody keeps."""
        with TemporaryDirectory() as directory:
            self.compute(store, Path(directory))

    def publish(self, store: Store, wait: bool = True, on_begin: Callable[[], None] | None = None) -> Artifact | None:
        """The artifact, computed if it does not exist. None with wait=False while another process computes it.

        on_begin: called when it is this process that computes it, before it does.
        """

        def compute(directory: Path) -> Mapping[str, Any] | None:
            if on_begin is not None:
                on_begin()
            return self.compute(store, directory)

        return store.get_or_compute(
            self.key,
            stage=self.kind,
            params={"name": self.name, **self.params},
            inputs=[stage.key for stage in self.inputs],
            compute=compute,
            wait=wait,
        )

    def artifact(self, store: Store) -> Artifact:
        """The artifact of a stage that is done. Raises StoreError where it is not."""
        return store.open(self.key)

    def child_run(self, store: Store) -> ChildRun | None:
        """What of it goes into MLflow; None for what nobody looks at by itself. Reads the artifact."""
        return None

    @property
    def is_recorded(self) -> bool:
        """Whether it goes into MLflow."""
        return type(self).child_run is not Stage.child_run


def artifacts_of(stages: Sequence[Stage], store: Store) -> list[Artifact]:
    """The artifacts of stages that are done: of a bucket many at a time. Raises StoreError where one is not."""
    return store.open_all([stage.key for stage in stages])


def closure(stages: Sequence[Stage]) -> Iterator[Stage]:
    """The stages and all that they are made from, inputs first, each once."""
    seen: set[str] = set()
    stack: list[tuple[Stage, bool]] = [(stage, False) for stage in reversed(stages)]
    while stack:
        stage, is_ready = stack.pop()
        if is_ready:
            yield stage
        elif stage.key not in seen:
            seen.add(stage.key)
            stack.append((stage, True))
            stack.extend((other, False) for other in reversed(stage.inputs))
