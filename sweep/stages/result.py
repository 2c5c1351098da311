"""The result of a sweep put together from its artifacts: cells, references, similarities, examples, and the report drawn of them."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.games.attribution_labels import perturbations
from core.metrics import Scores, mean_scores, with_normalized
from sweep.experiment.config import SweepConfig
from sweep.report.page import write_report
from sweep.report.result import (
    CONVERGENCE_COLUMNS,
    OBJECTIVE_COLUMNS,
    ONE_PASS_COLUMNS,
    REFERENCE_COLUMNS,
    SIMILARITY_COLUMNS,
    SOURCE_MODEL_COLUMNS,
    SweepResult,
)
from sweep.stages.convergence import Convergence
from sweep.stages.examples import Examples
from sweep.stages.labels import LabelSet
from sweep.stages.other_targets import OtherTargetsPoint
from sweep.stages.pairs import PairSearch
from sweep.stages.provenance import provenance
from sweep.stages.references import Reference
from sweep.stages.scoring import map_scores
from sweep.stages.stage import Stage
from sweep.store.artifacts import Artifact, Store


@dataclass(frozen=True, eq=False)
class Result(Stage):
    """Files: those of SweepResult, report.html, figures."""

    kind = "result"
    version = 12

    command: str
    config: SweepConfig
    pairs: tuple[PairSearch, ...]
    references: tuple[Reference, ...]
    examples: tuple[Examples, ...]
    train_labels: tuple[LabelSet, ...]
    convergence: tuple[Convergence, ...] = ()
    other_targets: tuple[OtherTargetsPoint, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.command} {self.config.suite}"

    @property
    def params(self) -> dict[str, Any]:
        return {"command": self.command, "suite": self.config.suite}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        source_models = [scores for pair in self.pairs for scores in pair.transfer.source_models]
        return (*self.pairs, *source_models, *self.references, *self.examples, *self.train_labels, *self.convergence, *self.other_targets)

    @property
    def also_reads(self) -> tuple[Stage, ...]:
        """What accuracies are normalised by, and what is told of pictures and labels."""
        of_pairs = [(pair.transfer.prediction_only, pair.transfer.pictures) for pair in self.pairs]
        return tuple(dict.fromkeys([stage for stages in of_pairs for stage in stages] + [reference.test for reference in self.references]))

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        result = SweepResult(
            command=self.command,
            sweep_key=self.key,
            suite=self.config.suite,
            sources=tuple(dict.fromkeys(pair.transfer.source for pair in self.pairs)),
            targets=tuple(reference.target for reference in self.references),
            pairs=tuple((pair.transfer.source, pair.transfer.target) for pair in self.pairs),
            provenance=provenance(self.config, self.pairs, store),
            cells=pd.concat([pair.cells(store) for pair in self.pairs], ignore_index=True),
            references=self._references(store),
            similarities=pd.concat([pair.similarities(store) for pair in self.pairs], ignore_index=True)[list(SIMILARITY_COLUMNS)],
            source_models=self._source_models(store),
            objectives=self._objectives(store),
            convergence=pd.concat([pd.DataFrame(columns=list(CONVERGENCE_COLUMNS)), *(c.load(store) for c in self.convergence)]),
            one_pass=self._one_pass(store),
            paper_points=pd.concat([pair.paper_point(store) for pair in self.pairs], ignore_index=True),
            intervals=pd.concat([pair.intervals(store) for pair in self.pairs], ignore_index=True),
            reference_intervals=pd.concat([reference.intervals(store) for reference in self.references], ignore_index=True),
            examples=tuple(example for examples in self.examples for example in examples.load(store)),
            artifacts=self._artifacts(store),
        )
        result.to_directory(directory)
        write_report(result, directory)
        return {"num_pairs": len(self.pairs)}

    def _objectives(self, store: Store) -> pd.DataFrame:
        """What the other targets choose for each pair, then what each objective would have."""
        frames = [*(point.objectives(store) for point in self.other_targets), *(pair.objectives(store) for pair in self.pairs)]
        return pd.concat(frames, ignore_index=True)[list(OBJECTIVE_COLUMNS)]

    def _one_pass(self, store: Store) -> pd.DataFrame:
        """Of each pair the chosen point's overlap on the pictures of its target's Figure 6."""
        frames = [pd.DataFrame(columns=list(ONE_PASS_COLUMNS))]
        pictures = {stage.target: np.unique(stage.load(store)["picture"]) for stage in self.convergence}
        for pair in self.pairs:
            if (of_target := pictures.get(pair.transfer.target)) is not None:
                overlap = pair.per_picture(store)["iou_at_10"][of_target]
                columns = (pair.transfer.source, pair.transfer.target, of_target, overlap)
                frames.append(pd.DataFrame(dict(zip(ONE_PASS_COLUMNS, columns, strict=True))))
        return pd.concat(frames, ignore_index=True)

    def _source_models(self, store: Store) -> pd.DataFrame:
        rows = [
            {
                "source_domain": pair.transfer.source,
                "target_domain": pair.transfer.target,
                "model": scores.reference,
                "alpha": scores.classifier.alpha,
                **with_normalized(scores.load(store, "test"), pair.transfer.prediction_only.load(store, "test")),
            }
            for pair in self.pairs
            for scores in pair.transfer.source_models
        ]
        return pd.DataFrame(rows, columns=list(SOURCE_MODEL_COLUMNS))

    def _artifacts(self, store: Store) -> dict[tuple[str, str], dict[str, str]]:
        """Of each pair the keys of what its chosen point was made from and measured on."""
        reference_of = {reference.target: reference for reference in self.references}
        found = {}
        for pair in self.pairs:
            transfer, alpha = pair.transfer, pair.chosen(store, "test")["alpha"]
            (vector,) = (v for v in transfer.source_vectors if v.alpha == alpha)
            made_from: dict[str, Stage] = {
                "search of the pair": pair,
                "explainability vector of the source": vector,
                "task vector of the target": transfer.target_task,
                "pictures of the target": transfer.pictures,
                "validation labels of the target": transfer.validation,
                "test labels of the target": transfer.test,
                "references of the target": reference_of[transfer.target],
            }
            found[transfer.source, transfer.target] = {name: stage.key for name, stage in made_from.items()}
        return found

    def _references(self, store: Store) -> pd.DataFrame:
        """The rows on test, with those that need other domains' labels."""
        rows: list[dict[str, Any]] = []
        for reference in self.references:
            found = [row for row in reference.rows(store) if row["split"] == "test"]
            other = self._other_mean_map(store, reference)
            found.append({"domain": reference.target, "reference": "other_mean_map", "alpha": None, **other})
            (prediction_only,) = (row for row in found if row["reference"] == "prediction_only")
            rows += [{**row, **with_normalized(row, prediction_only)} for row in found]
        return pd.DataFrame(rows)[list(REFERENCE_COLUMNS)]

    def _other_mean_map(self, store: Store, reference: Reference) -> Scores:
        """Scores on test of the other domains' mean label maps: the mean over them, each scored by itself."""
        labels = reference.test.load(store)
        removed = perturbations(labels.attributions.shape[1], reference.test.settings.num_perturbations)
        others = [found for found in self.train_labels if found.domain != reference.target]
        all_scores = [map_scores(labels, removed, other.mean_map(store).astype(np.float32)) for other in others]
        return mean_scores(all_scores)

    def load(self, store: Store) -> SweepResult:
        """A result that was assembled before."""
        return read_result(self.artifact(store))


def read_result(artifact: Artifact) -> SweepResult:
    """The result in an artifact of this kind. Raises ResultError where another version wrote it."""
    with tempfile.TemporaryDirectory() as directory:
        for name in artifact.manifest["files"]:
            if "/" not in name:  # figures are not read back
                shutil.copyfile(artifact.path(name), Path(directory) / name)
        return SweepResult.from_directory(Path(directory))
