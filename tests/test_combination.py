"""Several vectors into one: known cases of each combination."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.merging.combination import COMBINATIONS, Consensus, IsoC, Mean, TsvM, parse_combination
from core.merging.parameters import ParameterError
from core.task_vectors import TaskVector, TaskVectorError

SHAPES = {"conv1.weight": (6, 3, 2, 2), "wide": (5, 9), "tall": (9, 5), "bias": (7,)}
MATRICES = ("conv1.weight", "wide", "tall")
EVERY = pytest.mark.parametrize("combination", COMBINATIONS.values(), ids=COMBINATIONS)


def random_vector(seed: int) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    return TaskVector({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}, "b")


VECTORS = [random_vector(seed) for seed in range(3)]


def flat(vector: TaskVector, name: str) -> np.ndarray:
    return vector.weights[name].flatten(1).double().numpy()


def mean_of(name: str) -> torch.Tensor:
    return (VECTORS[0].weights[name] + VECTORS[1].weights[name] + VECTORS[2].weights[name]) / 3


@EVERY
def test_a_combination_is_of_the_same_base_and_architecture_and_changes_nothing_given(combination):
    before = [{name: weight.clone() for name, weight in vector.weights.items()} for vector in VECTORS]
    combination.combine(VECTORS).check_same_base(VECTORS[0])
    for vector, weights in zip(VECTORS, before, strict=True):
        assert all(torch.equal(vector.weights[name], weight) for name, weight in weights.items())
    with pytest.raises(TaskVectorError, match="different base models"):
        combination.combine([VECTORS[0], TaskVector(VECTORS[1].weights, "another")])
    with pytest.raises(ValueError, match="at least one"):
        combination.combine([])


@EVERY
def test_a_combination_is_its_text(combination):
    assert parse_combination(combination.text) == parse_combination(combination.name) == combination
    for name, ends in combination.search_space().items():
        assert all(parse_combination(f"{combination.name}:{name}={value}").text for value in ends)


def test_the_mean_of_equal_vectors_is_the_vector():
    equal = Mean().combine([VECTORS[0]] * 4)
    assert all(torch.equal(equal.weights[name], weight) for name, weight in VECTORS[0].weights.items())
    mean = Mean().combine(VECTORS).weights
    assert all(torch.allclose(mean[name], mean_of(name), atol=1e-6) for name in SHAPES)


@pytest.mark.parametrize("combination", [IsoC(), TsvM()])
def test_other_weights_than_matrices_get_the_mean(combination):
    torch.testing.assert_close(combination.combine(VECTORS).weights["bias"], mean_of("bias"))


@pytest.mark.parametrize("name", MATRICES)
def test_iso_c_has_the_sums_directions_with_equal_singular_values(name):
    combined = flat(IsoC().combine(VECTORS), name)
    total = sum(flat(vector, name) for vector in VECTORS)
    values = np.linalg.svd(total, compute_uv=False)
    found = np.linalg.svd(combined, compute_uv=False)
    assert np.abs(found - values.mean()).max() < 1e-5
    # The polar factor of the sum: combined^T total is symmetric with the sum's singular values, times the mean, as eigenvalues.
    product = combined.T @ total
    assert np.abs(product - product.T).max() < 1e-4
    eigenvalues = np.sort(np.linalg.eigvalsh(product))[::-1][: len(values)]
    assert np.abs(eigenvalues - values.mean() * values).max() < 1e-4


def test_tsv_m_of_orthogonal_vectors_of_low_rank_is_their_sum():
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q for _ in range(2))
    parts = [3.0 * torch.outer(u[:, 0], v[:, 0]) + torch.outer(u[:, 1], v[:, 1]), 2.0 * torch.outer(u[:, 2], v[:, 2])]
    combined = TsvM().combine([TaskVector({"w": part.view(12, 3, 2, 2)}, "b") for part in parts]).weights["w"]
    torch.testing.assert_close(combined.view(12, 12), parts[0] + parts[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MATRICES)
def test_tsv_m_is_the_papers_formula(name):
    """Whitening by (U^T U)^(-1/2), as the paper derives it, of a third of the directions of each (ranks 5 and 6: one and two)."""
    rank = min(flat(VECTORS[0], name).shape) // 3
    parts = [np.linalg.svd(flat(vector, name), full_matrices=False) for vector in VECTORS]
    left, right = np.concatenate([u[:, :rank] for u, _, _ in parts], 1), np.concatenate([vh[:rank].T for _, _, vh in parts], 1)
    values = np.concatenate([s[:rank] for _, s, _ in parts])

    def whitened(columns: np.ndarray) -> np.ndarray:
        eigenvalues, basis = np.linalg.eigh(columns.T @ columns)
        return columns @ (basis / np.sqrt(eigenvalues)) @ basis.T

    expected = whitened(left) @ np.diag(values) @ whitened(right).T
    assert np.abs(flat(TsvM().combine(VECTORS), name) - expected).max() < 1e-4
    assert np.allclose(np.sort(np.linalg.svd(expected, compute_uv=False))[-len(values) :], np.sort(values))


def test_tsv_m_takes_one_direction_at_least_and_zeros():
    many = TsvM().combine([TaskVector({"w": torch.randn(2, 3, generator=torch.Generator().manual_seed(n))}, "b") for n in range(5)])
    assert many.weights["w"].isfinite().all()
    zeros = TsvM().combine([TaskVector({"w": torch.zeros(4, 3)}, "b")] * 2)
    assert not zeros.weights["w"].any()
    alone = TsvM().combine(VECTORS[:1])
    assert all(torch.allclose(alone.weights[name], weight, atol=1e-5) for name, weight in VECTORS[0].weights.items())


def test_consensus_by_hand():
    """Uses a weight: |tau| > 0.5 |the others' sum|."""
    vectors = [[1.0, 3.0, 1.0, 0.0], [1.0, 0.1, -1.0, 0.0], [1.0, 0.1, 4.0, 5.0]]
    combined = Consensus(threshold=0.5, min_sources=2).combine([TaskVector({"w": torch.tensor(v)}, "b") for v in vectors])
    # 1 > 0.5 * 2 for none. 3 alone. 1 > 1.5: no; 1 > 2.5: no; 4 > 0: one. 5: one.
    assert combined.weights["w"].tolist() == [0.0, 0.0, 0.0, 0.0]
    loose = Consensus(threshold=0.4, min_sources=2).combine([TaskVector({"w": torch.tensor(v)}, "b") for v in vectors])
    assert loose.weights["w"].tolist() == [1.0, 0.0, 0.0, 0.0]  # 1 > 0.8 for all three
    single = Consensus(threshold=0.5, min_sources=1).combine([TaskVector({"w": torch.tensor(v)}, "b") for v in vectors])
    torch.testing.assert_close(single.weights["w"], torch.tensor([0.0, 3.2 / 3, 4 / 3, 5 / 3]))
    everything = Consensus(threshold=0.4, min_sources=1).combine(VECTORS[:1])
    assert all(torch.equal(everything.weights[name], weight) for name, weight in VECTORS[0].weights.items())


def test_bad_parameters_are_refused():
    for text in ("consensus:threshold=-1", "consensus:min_sources=0", "sum", "mean:scale=2"):
        with pytest.raises(ParameterError):
            parse_combination(text)
