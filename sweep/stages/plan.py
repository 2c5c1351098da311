"""What a sweep will have computed when it ends, written down at its start: for whoever asks meanwhile what is left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from sweep.stages.stage import Stage


@dataclass(frozen=True)
class Plan:
    """store: where the artifacts go, without credentials. versions: of each kind of stage, which code computes it. stages: kind -> key ->
    what it is called, kinds and stages in the order of work.
    """

    store: str
    versions: Mapping[str, int]
    stages: Mapping[str, Mapping[str, str]]

    @staticmethod
    def of(store: str, stages: Iterable[Stage]) -> Plan:
        """stages: all of a sweep's, inputs first."""
        names: dict[str, dict[str, str]] = defaultdict(dict)
        versions = {}
        for stage in stages:
            names[stage.kind][stage.key] = stage.name
            versions[stage.kind] = stage.version
        return Plan(store, versions, dict(names))

    @property
    def keys(self) -> set[str]:
        return {key for of_kind in self.stages.values() for key in of_kind}

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises ValueError for what is no plan."""
        try:
            return Plan(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"it is no plan of a sweep: {error}") from None
