"""Equations 1 to 3 and 6 to 8 as identities, and task vectors as files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.low_rank import load_vector
from core.merging.rules import MERGE_RULES
from core.task_vectors import TaskVector, TaskVectorError, cosine_matrix, gram_matrix, load_attribution_fisher


def weights(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {"conv1.weight": scale * torch.randn(4, 3, generator=generator), "proj": scale * torch.randn(5, generator=generator)}


def transfer(base, target_task, explainability, lambda1, lambda2):
    return MERGE_RULES["addition"].prepare(base, target_task, explainability).weights(lambda1, lambda2)


def moved(start, seed):
    step = weights(seed, 0.01)
    return {k: v + step[k] for k, v in start.items()}


BASE = weights(0)
FT_S, FT_T = moved(BASE, 1), moved(BASE, 2)
STAR_S = moved(FT_S, 3)


def close(a, b):
    for k in b:
        torch.testing.assert_close(a[k], b[k], atol=1e-6, rtol=0)


def test_base_plus_task_vector_is_the_fine_tuned_model():
    close(TaskVector.between(FT_S, BASE, "b").apply_to(BASE), FT_S)


def test_equation_7_both_forms_agree():
    tau_ft_t, tau_ft_s = TaskVector.between(FT_T, BASE, "b"), TaskVector.between(FT_S, BASE, "b")
    tau_fts_s = TaskVector.between(STAR_S, BASE, "b")
    tau_star_s = TaskVector.between(STAR_S, FT_S, "b")
    left, right = tau_ft_t + tau_fts_s - tau_ft_s, tau_ft_t + tau_star_s
    close(left.weights, right.weights)


def test_equation_6_holds_exactly_when_the_explainability_vectors_are_equal():
    star = TaskVector.between(STAR_S, FT_S, "b")
    star_t_weights = star.apply_to(FT_T)
    lhs = TaskVector.between(STAR_S, BASE, "b") - TaskVector.between(FT_S, BASE, "b")
    rhs = TaskVector.between(star_t_weights, BASE, "b") - TaskVector.between(FT_T, BASE, "b")
    close(lhs.weights, rhs.weights)
    assert lhs.cosine_similarity(rhs) == pytest.approx(1.0, abs=1e-4)  # float32 weights: the difference loses digits


def test_equation_8_lambda2_zero_is_the_target_model_and_all_zero_the_base():
    task, star = TaskVector.between(FT_T, BASE, "b"), TaskVector.between(STAR_S, FT_S, "b")
    close(transfer(BASE, task, star, 1.0, 0.0), FT_T)
    close(transfer(BASE, task, star, 0.0, 0.0), BASE)
    close(transfer(BASE, task, star, 1.0, 0.8), {k: BASE[k] + (FT_T[k] - BASE[k]) + 0.8 * (STAR_S[k] - FT_S[k]) for k in BASE})


def test_transfer_to_the_source_itself_gives_its_self_explaining_model():
    task, star = TaskVector.between(FT_S, BASE, "b"), TaskVector.between(STAR_S, FT_S, "b")
    close(transfer(BASE, task, star, 1.0, 1.0), STAR_S)


def test_equation_3_scales_a_vector_and_equation_1_a_sum():
    a, b = TaskVector.between(FT_S, BASE, "b"), TaskVector.between(FT_T, BASE, "b")
    close((0.4 * (a + b)).apply_to(BASE), {k: BASE[k] + 0.4 * (FT_S[k] - BASE[k] + FT_T[k] - BASE[k]) for k in BASE})


def test_cosine_similarity():
    a = TaskVector({"w": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0])}, "b")
    b = TaskVector({"v": torch.tensor([1.0]), "w": torch.tensor([0.0, 1.0])}, "b")
    assert a.cosine_similarity(b) == pytest.approx(0.5)
    assert a.cosine_similarity(-1.0 * a) == pytest.approx(-1.0)
    zero = 0.0 * a
    assert zero.cosine_similarity(a) != zero.cosine_similarity(a)  # nan
    assert a.norm() == pytest.approx(2**0.5)


def test_vectors_that_do_not_belong_together_are_refused():
    a = TaskVector.between(FT_S, BASE, "one base")
    with pytest.raises(TaskVectorError, match="different base models"):
        a + TaskVector.between(FT_T, BASE, "another")
    with pytest.raises(TaskVectorError, match="names differ"):
        TaskVector.between({"proj": FT_S["proj"]}, BASE, "b")
    with pytest.raises(TaskVectorError, match="shape"):
        TaskVector.between({**FT_S, "proj": torch.zeros(6)}, BASE, "b")


def test_matrices_are_those_of_the_flat_vectors():
    vectors = [TaskVector.between(moved(BASE, seed), BASE, "b") for seed in range(4)]
    flat = torch.stack([torch.cat([v.weights[k].flatten().double() for k in BASE]) for v in vectors])
    torch.testing.assert_close(gram_matrix(vectors), flat @ flat.T, atol=1e-12, rtol=1e-12)  # float64 sums in another order
    found = cosine_matrix(vectors)
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors):
            assert found[i, j].item() == pytest.approx(a.cosine_similarity(b), abs=1e-12)
    assert cosine_matrix([vectors[0], 0.0 * vectors[0]])[0, 1].isnan()
    with pytest.raises(TaskVectorError, match="different base models"):
        gram_matrix([vectors[0], TaskVector(vectors[1].weights, "another")])


def test_a_saved_vector_comes_back_with_its_base_and_other_programs_read_it(tmp_path):
    vector = TaskVector.between(FT_S, BASE, "the base's fingerprint")
    path = tmp_path / "vector.safetensors"
    vector.save(path, {"domain": "signs"})
    loaded = TaskVector.load(path, "the base's fingerprint")
    assert loaded.base_fingerprint == vector.base_fingerprint
    assert all(torch.equal(loaded.weights[k], v) for k, v in vector.weights.items())
    assert load_file(path).keys() == vector.weights.keys()
    with pytest.raises(TaskVectorError, match="belongs to the base the base's f"):
        TaskVector.load(path, "another")
    save_file(vector.weights, path)
    with pytest.raises(TaskVectorError, match="does not name its base"):
        TaskVector.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TaskVectorError, match="cannot be read"):
        TaskVector.load(path)


def test_what_a_merge_rule_needs_lies_beside_a_vector_and_is_no_part_of_it(tmp_path):
    star, fisher = TaskVector.between(STAR_S, FT_S, "b"), {name: weight.square() for name, weight in FT_S.items()}
    star.save(tmp_path / "bare.safetensors")
    star.save(tmp_path / "both.safetensors", {"alpha": "0.5"}, fisher)
    for load in (TaskVector.load, load_vector):
        loaded = load(tmp_path / "both.safetensors", "b")
        assert loaded.weights.keys() == star.weights.keys() and all(torch.equal(loaded.weights[k], star.weights[k]) for k in star.weights)
    found = load_attribution_fisher(tmp_path / "both.safetensors")
    assert found.keys() == fisher.keys() and all(torch.equal(found[k], fisher[k]) for k in fisher)
    assert load_attribution_fisher(tmp_path / "bare.safetensors") is None
    with pytest.raises(TaskVectorError, match="different architectures"):
        star.save(tmp_path / "other.safetensors", None, {"proj": fisher["proj"]})
