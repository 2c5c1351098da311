"""The training loop: what alpha means, determinism, and continuing after a kill."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch

from core.checkpoints import FileCheckpoint
from core.data.picture_shards import PictureShards, write_pixels
from core.finetune import Recipe, finetune, make_optimizer, restore_optimizer
from core.losses import combined_loss, explanation_loss
from core.training_data import PicturesInMemory, TrainingData, batches, load_ahead

RECIPE = Recipe(learning_rate=5e-4, batch_size=8, num_steps=8, warmup_steps=2)


@pytest.fixture
def data(base, signs):
    labels = torch.randn(24, 49, generator=torch.Generator().manual_seed(0)) * 0.1
    return TrainingData(PicturesInMemory(signs.pixels), signs.class_ids, base.preprocessing, labels)


def trained(classifier, data, recipe=RECIPE, alpha=1.0, **options):
    classifier = copy.deepcopy(classifier)
    return classifier, finetune(classifier, data, recipe, alpha, **options)


def same_weights(a, b):
    return all(torch.equal(x, b.visual.state_dict()[k]) for k, x in a.visual.state_dict().items())


def test_alpha_1_is_prediction_only_training_bit_for_bit(sign_classifier, data):
    with_labels, history = trained(sign_classifier, data, alpha=1.0)
    without, other = trained(sign_classifier, replace(data, attribution_labels=None), alpha=1.0)
    assert [p.loss for p in history] == [p.loss for p in other] == [p.classification_loss for p in history]
    assert same_weights(with_labels, without)


def test_the_first_loss_is_equation_4(base, sign_classifier, data):
    _, history = trained(sign_classifier, data, alpha=0.3)
    index = next(batches(24, 8, 8, RECIPE.seed))
    with torch.no_grad():
        explained = sign_classifier(base.preprocessing.normalise(data.pictures.gather(index)), data.class_ids[index])
    classification = torch.nn.functional.cross_entropy(explained.logits, data.class_ids[index])
    squared = (explained.attributions - data.attribution_labels[index]).pow(2).sum(1).mean()
    assert abs(history[0].loss - (0.3 * classification + 0.7 * squared).item()) < 1e-3
    assert abs(history[0].explanation_loss - squared.item()) < 1e-3


def test_explanation_loss_sums_over_patches_and_means_over_pictures():
    predicted, labels = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    assert explanation_loss(predicted, labels).item() == pytest.approx((9 + 1) / 2)
    assert combined_loss(torch.tensor(2.0), torch.tensor(4.0), 0.25).item() == pytest.approx(3.5)


def test_training_lowers_both_losses(sign_classifier, data):
    recipe = replace(RECIPE, num_steps=40)
    _, history = trained(sign_classifier, data, recipe, alpha=0.5)
    assert history[-1].classification_loss < 0.7 * history[0].classification_loss
    assert history[-1].explanation_loss < 0.7 * history[0].explanation_loss


def test_same_seed_gives_the_same_weights_and_another_seed_others(sign_classifier, data):
    a, _ = trained(sign_classifier, data, alpha=0.5)
    b, _ = trained(sign_classifier, data, alpha=0.5)
    c, _ = trained(sign_classifier, data, replace(RECIPE, seed=1), alpha=0.5)
    assert same_weights(a, b) and not same_weights(a, c)


class Killed(Exception):
    pass


def kill_at_5(progress):
    if progress.step == 5:
        raise Killed


def test_a_killed_training_continues_to_the_same_weights(sign_classifier, data, tmp_path):
    undisturbed, history = trained(sign_classifier, data, alpha=0.5)
    checkpoint = FileCheckpoint(tmp_path / "not yet there" / "checkpoint")
    with pytest.raises(Killed):
        trained(sign_classifier, data, alpha=0.5, checkpoint=checkpoint, checkpoint_every_s=-1.0, on_progress=kill_at_5)
    assert checkpoint.load()["next_step"] == 4
    continued, resumed_history = trained(sign_classifier, data, alpha=0.5, checkpoint=checkpoint)
    assert same_weights(undisturbed, continued)
    assert resumed_history == history
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["checkpoint"]  # kept until the weights are safe
    checkpoint.remove()
    assert not list(checkpoint.path.parent.iterdir())


def test_a_damaged_checkpoint_is_named_and_the_training_begins_anew(sign_classifier, data, tmp_path, caplog):
    checkpoint = FileCheckpoint(tmp_path / "checkpoint")
    with pytest.raises(Killed):
        trained(sign_classifier, data, checkpoint=checkpoint, checkpoint_every_s=-1.0, on_progress=kill_at_5)
    raw = checkpoint.path.read_bytes()
    undisturbed, history = trained(sign_classifier, data)
    middle = len(raw) // 2
    flipped = raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]  # one bit of one weight
    for content in (flipped, raw[:middle], raw[:-1000], b"", b"no checkpoint"):
        checkpoint.path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            again, resumed_history = trained(sign_classifier, data, checkpoint=checkpoint)
        assert "is damaged" in caplog.text and str(checkpoint.path) in caplog.text
        assert same_weights(undisturbed, again) and resumed_history == history
        caplog.clear()


@pytest.mark.parametrize("is_fused", [True, False])
def test_a_restored_optimizer_goes_on_as_it_works_itself(is_fused):
    """Whatever the checkpoint's optimizer was: the state is the moments, not the way they are computed."""
    recipe = Recipe(learning_rate=0.1, batch_size=1, num_steps=1)

    def stepped(optimizer, parameter, number):
        for _ in range(number):
            parameter.grad = parameter.detach().clone()
            optimizer.step()
        return optimizer

    whole = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    stepped(make_optimizer([whole], recipe, torch.device("cpu")), whole, 3)
    parameter = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    saved = stepped(torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0, fused=is_fused), parameter, 2).state_dict()["state"]
    optimizer = make_optimizer([parameter], recipe, torch.device("cpu"))
    restore_optimizer(optimizer, saved)
    assert optimizer.param_groups[0]["fused"]
    torch.testing.assert_close(stepped(optimizer, parameter, 1).param_groups[0]["params"][0], whole, atol=1e-6, rtol=0)


def test_the_number_of_steps_stays_on_the_cpu_unless_the_optimizer_is_fused():
    """The meta device stands for a GPU: moments go there with the weights. (torch has no fused optimizer on it.)"""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(2)
    optimizer.step()
    elsewhere = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, device="meta"))], lr=0.1)
    restore_optimizer(elsewhere, optimizer.state_dict()["state"])
    (state,) = elsewhere.state.values()
    assert (state["step"].device.type, state["exp_avg"].device.type) == ("cpu", "meta")
    assert state["step"].item() == 1


def test_pictures_in_shards_train_as_pictures_in_memory(sign_classifier, data, signs, tmp_path):
    for i in range(3):
        write_pixels(tmp_path / f"{i}.npy", signs.pixels[8 * i : 8 * i + 8].numpy())
    shards = PictureShards([tmp_path / f"{i}.npy" for i in range(3)])
    in_memory, history = trained(sign_classifier, data, alpha=0.5)
    in_shards, same_history = trained(sign_classifier, replace(data, pictures=shards), alpha=0.5)
    assert history == same_history and same_weights(in_memory, in_shards)


def test_batches_are_loaded_in_order_and_one_ahead(data):
    asked = []

    class Watched(PicturesInMemory):
        def gather(self, index):
            asked.append(index.tolist())
            return super().gather(index)

    order = list(batches(24, 8, 5, seed=0))
    loaded = load_ahead(replace(data, pictures=Watched(data.pictures.pixels)).take(order), torch.device("cpu"))
    for i, index in enumerate(order):
        batch = next(loaded)
        assert len(asked) <= i + 2
        assert torch.equal(batch.pixels, data.pictures.pixels[index])
        assert torch.equal(batch.class_ids, data.class_ids[index])
        assert torch.equal(batch.attribution_labels, data.attribution_labels[index])
    assert next(loaded, None) is None
    assert asked == [index.tolist() for index in order]


def test_a_picture_that_cannot_be_read_ends_the_training_with_its_error(sign_classifier, data):
    class Broken(PicturesInMemory):
        def gather(self, index):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        trained(sign_classifier, replace(data, pictures=Broken(data.pictures.pixels)))


def test_in_bfloat16_the_losses_are_taken_in_float32(sign_classifier, data, signs):
    """Of logits and attributions in float32, near those of a float32 pass: bfloat16 has 8 bits, relative error 2^-9 an operation."""
    with torch.no_grad():
        exact = sign_classifier(signs.inputs, signs.class_ids)
        with torch.autocast("cpu", torch.bfloat16):
            explained, logits = sign_classifier(signs.inputs, signs.class_ids), sign_classifier.logits(signs.inputs)
    assert explained.logits.dtype == logits.dtype == explained.attributions.dtype == torch.float32
    assert 0 < (explained.attributions - exact.attributions).abs().max() < 0.03  # cosines
    _, history = trained(sign_classifier, data, replace(RECIPE, precision="bfloat16"), alpha=0.5)
    _, in_float32 = trained(sign_classifier, data, alpha=0.5)
    assert history[-1].loss == pytest.approx(in_float32[-1].loss, rel=0.05)


def test_every_training_on_a_data_set_sees_the_same_batches():
    whole = [b.tolist() for b in batches(20, 8, 10, seed=3)]
    assert whole == [b.tolist() for b in batches(20, 8, 10, seed=3)]
    assert whole[4:] == [b.tolist() for b in batches(20, 8, 10, seed=3, start=4)]
    assert len({i for b in whole[:2] for i in b}) == 16  # an epoch repeats no picture
    assert [len(b) for b in batches(3, 8, 2, seed=0)] == [3, 3]


@pytest.mark.parametrize(
    ("alpha", "drop_labels", "message"), [(1.5, False, r"\[0, 1\]"), (-0.1, False, r"\[0, 1\]"), (0.5, True, "needs attribution labels")]
)
def test_impossible_trainings_are_refused(sign_classifier, data, alpha, drop_labels, message):
    if drop_labels:
        data = replace(data, attribution_labels=None)
    with pytest.raises(ValueError, match=message):
        trained(sign_classifier, data, alpha=alpha)


def test_training_data_that_do_not_belong_together_are_refused(data):
    with pytest.raises(ValueError, match="25 class ids for 24 pictures"):
        replace(data, class_ids=torch.zeros(25, dtype=torch.long), attribution_labels=None)
    with pytest.raises(ValueError, match="23 attribution labels for 24"):
        replace(data, attribution_labels=torch.zeros(23, 49))


def test_a_recipe_has_one_length():
    with pytest.raises(ValueError, match="either num_steps or epochs"):
        Recipe(learning_rate=1e-3, batch_size=8)
    assert Recipe(learning_rate=1e-3, batch_size=8, epochs=3).total_steps(20) == 6


@pytest.mark.parametrize("changed", [{"batch_size": 0}, {"learning_rate": float("nan")}, {"learning_rate": float("inf")}, {"num_steps": 0}])
def test_a_recipe_that_cannot_be_is_told_by_its_number(changed):
    ((name, value),) = changed.items()
    with pytest.raises(ValueError, match=f"a recipe's {name} must be positive and finite, not {value}"):
        replace(RECIPE, **changed)
