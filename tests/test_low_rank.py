"""Task vectors of a few directions: the closest ones there are, and their files."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.low_rank import LowRankVector, load_vector
from core.spectra import spectra, spectrum
from core.task_vectors import TaskVector, TaskVectorError

SHAPES = {"conv1.weight": (20, 3, 4, 4), "wide": (16, 40), "tall": (40, 16), "small": (2, 3), "bias": (7,)}
GENERATOR = torch.Generator().manual_seed(0)
VECTOR = TaskVector({name: torch.randn(shape, generator=GENERATOR) for name, shape in SHAPES.items()}, "the base's fingerprint")
FACTORED = ("conv1.weight", "wide", "tall")


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_each_matrix_is_the_closest_of_its_rank(rank):
    """Eckart and Young: what is missing is the norm of the singular values left out."""
    low = LowRankVector.of(VECTOR, rank)
    missing = 0.0
    assert set(FACTORED) <= set(low.factors)
    for name in low.factors:
        left_out = torch.linalg.svdvals(VECTOR.weights[name].flatten(1).double())[rank:]
        error = (low.vector().weights[name] - VECTOR.weights[name]).norm().item()
        assert error == pytest.approx(left_out.norm().item(), rel=1e-5)
        assert torch.linalg.matrix_rank(low.vector().weights[name].flatten(1), rtol=1e-5) == rank
        missing += left_out.square().sum().item()
    assert low.relative_error(VECTOR) == pytest.approx(missing**0.5 / VECTOR.norm(), rel=1e-5)


def test_small_weights_and_matrices_that_factors_would_not_shorten_stay_whole():
    low = LowRankVector.of(VECTOR, 2)
    assert set(low.factors) == set(FACTORED) and set(low.whole) == {"small", "bias"}
    assert low.num_numbers == 2 * (20 + 48 + 2 * 56) + 6 + 7
    everything = LowRankVector.of(VECTOR, 16)
    assert not everything.factors and everything.relative_error(VECTOR) == 0.0
    assert all(torch.equal(everything.vector().weights[name], weight) for name, weight in VECTOR.weights.items())


def test_a_vector_of_low_rank_loses_nothing():
    low = LowRankVector.of(VECTOR, 3).vector()
    assert LowRankVector.of(low, 3).relative_error(low) < 1e-6
    assert LowRankVector.of(0.0 * VECTOR, 3).relative_error(0.0 * VECTOR) == 0.0
    with pytest.raises(ValueError, match="at least 1"):
        LowRankVector.of(VECTOR, 0)


def test_a_saved_vector_comes_back_and_other_programs_read_its_factors(tmp_path):
    path, low = tmp_path / "vector.safetensors", LowRankVector.of(VECTOR, 3)
    low.save(path, {"domain": "signs"})
    loaded = LowRankVector.load(path, VECTOR.base_fingerprint)
    for vector in (loaded.vector(), load_vector(path, VECTOR.base_fingerprint)):
        assert vector.base_fingerprint == VECTOR.base_fingerprint
        assert vector.weights.keys() == VECTOR.weights.keys()
        assert all(torch.equal(vector.weights[name], weight) for name, weight in low.vector().weights.items())
    assert loaded.rank == 3 and loaded.num_numbers == low.num_numbers
    raw = load_file(path)
    torch.testing.assert_close((raw["wide.us"] @ raw["wide.v"].T), low.vector().weights["wide"])
    assert raw["conv1.weight.us"].shape == (20, 3) and raw["conv1.weight.v"].shape == (48, 3)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["rank"], metadata["base_fingerprint"], metadata["domain"]) == ("3", VECTOR.base_fingerprint, "signs")


def test_files_of_the_other_kind_another_base_or_cut_short_are_refused(tmp_path):
    whole, factors = tmp_path / "whole.safetensors", tmp_path / "factors.safetensors"
    VECTOR.save(whole)
    LowRankVector.of(VECTOR, 2).save(factors)
    assert all(torch.equal(load_vector(whole).weights[name], weight) for name, weight in VECTOR.weights.items())
    with pytest.raises(TaskVectorError, match="factors of rank 2: read it with core.low_rank.load_vector"):
        TaskVector.load(factors)
    with pytest.raises(TaskVectorError, match="no factors: read it with core.low_rank.load_vector"):
        LowRankVector.load(whole)
    for load in (load_vector, LowRankVector.load):
        with pytest.raises(TaskVectorError, match="belongs to the base the base's f"):
            load(factors, "another")
    with safe_open(factors, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor for name, tensor in load_file(factors).items() if name != "tall.v"}, factors, metadata)
    with pytest.raises(TaskVectorError, match=r"lacks the factor 'tall\.v'"):
        load_vector(factors)
    factors.write_bytes(factors.read_bytes()[:-1])
    with pytest.raises(TaskVectorError, match="cannot be read"):
        load_vector(factors)


def test_spectra_stop_at_the_numerical_rank_and_are_decomposed_once(monkeypatch):
    low = LowRankVector.of(VECTOR, 3).vector()
    assert {name: len(found.s) for name, found in spectra(low).items()} == {"conv1.weight": 3, "wide": 3, "tall": 3, "small": 2}
    for name, found in spectra(VECTOR).items():
        torch.testing.assert_close(found.matrix().view(SHAPES[name]), VECTOR.weights[name], atol=1e-5, rtol=0)
    assert spectrum(torch.zeros(3, 4)).matrix().shape == (3, 4)
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: pytest.fail("decomposed again"))
    assert spectra(VECTOR) is spectra(VECTOR)
