"""The rule `atlas`: what its loss sees and what it does not, what is learned on pictures alone, and a sweep that merges by it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from in_process import TINY_UNIVERSAL, engines_here

from core.attribution_head import AttributionHead
from core.games.attribution_labels import perturbations
from core.games.learned_coefficients import learn_coefficients
from core.losses import shape_loss
from core.merging.atlas import Atlas, AtlasRows
from core.merging.rule import Evidence
from core.model import SelfExplainingClassifier
from core.task_vectors import TaskVector, TaskVectorError
from core.training_data import PicturesInMemory, TrainingData
from sweep import run
from sweep.report.result import SweepResult
from sweep.store.artifacts import Store

NUM_PATCHES = 16


def removed_sets() -> np.ndarray:
    return perturbations(NUM_PATCHES, 40)


def loss_of(maps: np.ndarray, changes: np.ndarray) -> float:
    return shape_loss(torch.from_numpy(maps), torch.from_numpy(removed_sets()).double(), torch.from_numpy(changes)).item()


def test_every_tensor_is_multiplied_by_its_own_coefficient():
    star = TaskVector({"conv1.weight": torch.ones(2, 3), "proj": torch.full((4,), 2.0)}, "b")
    coefficients = {"conv1.weight": torch.tensor(0.5), "proj": torch.tensor(-1.0)}
    edited = Atlas().edited_on("cpu", star, star, Evidence(coefficients=coefficients)).weights
    assert edited["conv1.weight"].tolist() == [[0.5] * 3] * 2 and edited["proj"].tolist() == [-2.0] * 4
    with pytest.raises(TaskVectorError, match=r"proj has shape \[\] in one model and \[4\]"):
        Atlas().edited_on("cpu", star, star, Evidence(coefficients={**coefficients, "proj": torch.ones(4)}))
    with pytest.raises(TaskVectorError, match="1 names differ"):
        Atlas().edited_on("cpu", star, star, Evidence(coefficients={"proj": torch.tensor(1.0)}))


def test_every_row_may_have_a_coefficient_of_its_own():
    star = TaskVector({"conv1.weight": torch.ones(2, 3, 1, 1), "proj": torch.full((2,), 2.0)}, "b")
    coefficients = {"conv1.weight": torch.tensor([0.5, -2.0]).view(2, 1, 1, 1), "proj": torch.tensor(-1.0)}
    edited = AtlasRows().edited_on("cpu", star, star, Evidence(coefficients=coefficients)).weights
    assert edited["conv1.weight"].flatten().tolist() == [0.5] * 3 + [-2.0] * 3 and edited["proj"].tolist() == [-2.0] * 2
    columns = {**coefficients, "conv1.weight": torch.ones(1, 3, 1, 1)}
    with pytest.raises(TaskVectorError, match=r"conv1.weight has shape \[2, 1, 1, 1\] in one model and \[1, 3, 1, 1\]"):
        AtlasRows().edited_on("cpu", star, star, Evidence(coefficients=columns))


def test_the_loss_is_the_partial_correlation_given_the_size_of_what_is_removed():
    generator, removed = np.random.default_rng(0), removed_sets()
    maps, changes = generator.normal(size=(3, NUM_PATCHES)), generator.normal(size=(3, len(removed)))
    size = np.column_stack([np.ones(len(removed)), removed.sum(1)])

    def rest(values: np.ndarray) -> np.ndarray:
        return values - size @ np.linalg.lstsq(size, values, rcond=None)[0]

    expected = [np.corrcoef(rest(removed @ m), rest(c))[0, 1] for m, c in zip(maps, changes, strict=True)]
    assert loss_of(maps, changes) == pytest.approx(1 - np.mean(expected), abs=1e-12)  # float64 throughout


def test_the_loss_sees_the_order_of_patches_and_neither_scale_nor_level():
    """Of an additive game the loss of its Shapley values is 0, and 2 for their opposite, which infidelity at the best scale cannot tell."""
    values = np.random.default_rng(1).normal(size=(5, NUM_PATCHES))
    changes = values @ removed_sets().T
    assert loss_of(values, changes) == pytest.approx(0.0, abs=1e-12)
    assert loss_of(1e-3 * values + 7.0, changes) == pytest.approx(0.0, abs=1e-9)
    assert loss_of(-values, changes) == pytest.approx(2.0, abs=1e-12)
    assert loss_of(np.ones_like(values), changes) == pytest.approx(1.0, abs=1e-6)


@pytest.fixture(scope="module")
def classifier(sign_classifier) -> SelfExplainingClassifier:
    head = AttributionHead("efficiency")
    return SelfExplainingClassifier(sign_classifier.visual, sign_classifier.head, sign_classifier.logit_scale, head).eval()


def test_coefficients_are_learned_on_pictures_without_any_label(base, classifier, signs):
    """Also of the same pictures with other class ids: these are not read. The classifier is as it was."""
    generator = torch.Generator().manual_seed(0)
    before = {name: weight.detach().clone() for name, weight in classifier.visual.named_parameters()}
    vector = TaskVector({k: 0.02 * v.std() * torch.randn(v.shape, generator=generator) for k, v in before.items()}, base.fingerprint)
    data = TrainingData(PicturesInMemory(signs.pixels[:8]), signs.class_ids[:8], base.preprocessing)
    rule = Atlas(num_steps=6, explanation_weight=0.9)
    found = learn_coefficients(classifier, data, vector, rule)
    assert found.values.shape == (1, len(before)) and found.losses[-1] < found.losses[0]
    unlabelled = learn_coefficients(classifier, replace(data, class_ids=torch.zeros_like(data.class_ids)), vector, rule)
    assert torch.equal(found.values, unlabelled.values)
    by_row = learn_coefficients(classifier, data, vector, AtlasRows(num_steps=6, num_pictures=4))
    assert by_row.losses[-1] < by_row.losses[0]
    matrices = [name for name, weight in before.items() if weight.dim() > 1]
    assert all(by_row.of_vector(0)[name].shape[0] == len(before[name]) for name in matrices)
    assert by_row.values.unique().numel() > len(before)
    assert all(torch.equal(weight, before[name]) and weight.grad is None for name, weight in classifier.visual.named_parameters())
    with pytest.raises(ValueError, match="no pictures to learn coefficients on"):
        learn_coefficients(classifier, replace(data, class_ids=data.class_ids[:0]), vector, rule)


def test_universal_merges_by_it_on_the_models_of_another_sweep(two_seeds, new_database, tmp_path, monkeypatch, capsys):
    """From one source to one target: nothing is trained or labelled for it."""
    shutil.copytree(two_seeds / "sweep_store", tmp_path / "sweep_store")
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    here = engines_here(monkeypatch)
    asked = [*TINY_UNIVERSAL, "--sources", "concepts", "--targets", "clean_digits", "--merge", "atlas:num_steps=2"]
    assert run.main(["universal", "--suite", "miniature", *asked]) == 0
    kinds = [work.kind for work in here.works]
    assert kinds.count("coefficients") == 1 and not {"finetune", "label", "vector"} & set(kinds)
    (key,) = [work.key for work in here.works if work.kind == "result"]
    result = SweepResult.from_directory(Store("sweep_store").open(key).path("result.json").parent)
    assert result.provenance["search.merge"] == Atlas(num_steps=2).text
