"""Two workers train one model: the loss curve and weights of one, with and without explanation supervision, streamed or at random."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from patience import PATIENCE_S
from test_finetune import RECIPE, Killed, kill_at_5, trained
from test_shard_stream import stream_of

from core import miniature
from core.attribution_head import AttributionHead
from core.checkpoints import FileCheckpoint
from core.data_parallel import DataParallel
from core.model import load_base
from core.training_data import PicturesInMemory, Share, TrainingData

NUM_WORKERS = 2
CASES = {"prediction only": 1.0, "self-explaining": 0.5, "efficiency head": 0.5, "streamed": 0.5}


@cache
def signs():
    """Base, 24 traffic signs with labels out of the air, and the zero-shot classifier's head."""
    base, spec = load_base("miniature"), miniature.domain_spec("traffic_signs")
    drawn, class_ids = miniature.draw_split("traffic_signs", "train", 24)
    pixels = torch.from_numpy(np.ascontiguousarray(drawn.transpose(0, 3, 1, 2)))
    labels = torch.randn(24, 49, generator=torch.Generator().manual_seed(0)) * 0.1
    data = TrainingData(PicturesInMemory(pixels), torch.from_numpy(class_ids), base.preprocessing, labels)
    return base, data, base.head(spec.class_names, spec.templates)


def train(case, directory, **options):
    """The model and history of a case."""
    base, data, head = signs()
    if case == "streamed":
        parts = data.pictures.pixels.numpy(), data.class_ids, data.attribution_labels
        directory.mkdir()
        data, _ = stream_of(base, directory, (10, 6, 8), 2, *parts)
    kind = "efficiency" if case == "efficiency head" else "cosine"
    return trained(base.classifier(head, AttributionHead(kind)), data, alpha=CASES[case], **options)


def _work(rank: int, directory: Path) -> None:
    """One worker through all cases; it leaves what it ended with."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=NUM_WORKERS, timeout=timedelta(seconds=PATIENCE_S)
    )
    workers = DataParallel.joined()
    found = {}
    for case in CASES:
        model, history = train(case, directory / f"{case} {rank}", workers=workers)
        found[case] = [point.loss for point in history], [point.explanation_loss for point in history], model.visual.state_dict()
    # Killed after step 5, and continued; then with a checkpoint that only the first one can read.
    path = directory / "checkpoint"
    options = {"checkpoint_every_s": -1.0, "on_progress": kill_at_5, "workers": workers}
    with pytest.raises(Killed):
        train("self-explaining", directory, checkpoint=FileCheckpoint(path), **options)
    dist.barrier()
    steps = []
    for own in (path, path if rank == 0 else directory / "nothing"):
        resumed = {"workers": workers, "on_progress": lambda progress: steps.append(progress.step)}
        model, history = train("self-explaining", directory, checkpoint=FileCheckpoint(own), checkpoint_every_s=1e6, **resumed)
        found[f"continued {own == path or rank}"] = [point.loss for point in history], [], model.visual.state_dict()
        dist.barrier()
    found["steps"] = steps
    torch.save(found, directory / f"found {rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two workers ended with: one is this process, as another would import and build everything again."""
    directory = tmp_path_factory.mktemp("workers")
    other = multiprocessing.get_context("spawn").Process(target=_work, args=(1, directory))
    other.start()
    _work(0, directory)
    other.join(PATIENCE_S)
    assert other.exitcode == 0
    return [torch.load(directory / f"found {rank}", weights_only=True) for rank in range(NUM_WORKERS)]


@pytest.mark.parametrize("case", CASES)
def test_the_loss_curve_of_two_workers_is_that_of_one(found, case, tmp_path):
    """The same batches, summed in another order: float32 sums differ by about 1e-7, which 8 steps of AdamW, whose first ones take the sign
    of a gradient however small, spread: 1e-4 is far above that, and far below what any other picture or weight in a batch does."""
    losses, explanation_losses, weights = found[0][case]
    model, history = train(case, tmp_path / "alone")
    assert losses == pytest.approx([point.loss for point in history], rel=1e-4)
    if CASES[case] < 1.0:
        assert explanation_losses == pytest.approx([point.explanation_loss for point in history], rel=1e-4)
    base, _, _ = signs()
    before = base.visual.state_dict()
    moved = sum(float((w - before[k]).square().sum()) for k, w in model.visual.state_dict().items())
    apart = sum(float((w - weights[k]).square().sum()) for k, w in model.visual.state_dict().items())
    assert (apart / moved) ** 0.5 < 0.01


@pytest.mark.parametrize("case", [*CASES, "continued True"])
def test_all_workers_end_with_the_same_model_and_history(found, case):
    (losses, explanations, weights), (other_losses, other_explanations, other) = found[0][case], found[1][case]
    assert losses == other_losses and explanations == other_explanations
    assert weights.keys() == other.keys() and all(torch.equal(weights[k], other[k]) for k in weights)


def test_workers_that_were_killed_go_on_where_the_first_one_had_saved(found):
    undisturbed, _, weights = found[0]["self-explaining"]
    continued, _, same = found[0]["continued True"]
    assert continued == undisturbed and all(torch.equal(weights[k], same[k]) for k in weights)
    assert found[0]["steps"] == [5, 6, 7, 8, *range(1, 9)] == found[1]["steps"]  # a state that one cannot read is none


def test_batches_that_cannot_be_shared_evenly_are_refused(sign_classifier):
    with pytest.raises(ValueError, match="multiple of the workers"):
        replace(RECIPE, workers_per_model=3)
    few = replace(signs()[1], class_ids=torch.zeros(7, dtype=torch.long), attribution_labels=None)
    with pytest.raises(ValueError, match="cannot share 7 pictures"):
        trained(sign_classifier, few, workers=DataParallel(Share(0, 2)))
