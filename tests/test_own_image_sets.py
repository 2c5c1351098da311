"""A sweep over the user's own image sets: Parquet and an image folder, of any size, colour and number of classes.

Without Ray, as stages do not know who runs them: such a sweep on the engines is in test_end_to_end.py, such files in test_label_kills.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import engines_here
from test_end_to_end import TINY, cells, runs

from core.data.domains import read_domain
from sweep import run as command_line
from sweep.store.artifacts import Store

DATA = Path(__file__).parent.parent.parent / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real picture samples (shared/data beside the checkout) are not here")


def sample(name: str, directory: Path, num_classes: int, per_class: int) -> Path:
    """A few classes of a data set as an image folder with one broken picture, so that a test takes seconds."""
    domain = read_domain(str(DATA / name))
    for split in ("train", "test"):
        origin = domain.splits[split]
        for class_id in range(num_classes):
            place = directory / split / domain.class_names[class_id].replace("/", " ")
            place.mkdir(parents=True)
            for n, index in enumerate((origin.class_ids == class_id).nonzero()[0][:per_class]):
                (place / f"{n}.png").write_bytes(origin.read_bytes(int(index)))
    broken = next(iter(sorted((directory / "train").rglob("*.png"))))
    broken.write_bytes(broken.read_bytes()[:60])
    return directory


@needs_data
def test_own_image_sets_of_any_size_colour_and_number_of_classes(tmp_path, monkeypatch, capsys):
    """MNIST (grey, 10 classes) and CIFAR-100 (100 classes) as Parquet, textures as an image folder with a broken picture."""
    textures = sample("dtd", tmp_path / "dtd", num_classes=4, per_class=14)
    monkeypatch.chdir(tmp_path)
    engines_here(monkeypatch)
    command = [
        "all_pairs", "--domains", str(DATA / "mnist"), str(DATA / "cifar100"), str(textures), "--targets", "cifar100", *TINY,
        "--alphas", "0.5", "--search", "optuna", "--lambdas", "0,1.2", "--num-trials", "5", "--max-corrupt-share", "0.05",
    ]  # fmt: skip
    assert command_line.main(command) == 0
    assert "dtd: 1 pictures cannot be read" in "".join(capsys.readouterr())
    table = cells(tmp_path)
    assert set(table["source_domain"]) == {"mnist", "dtd"}
    assert (table["split"] == "test").sum() == 2
    assert {run.info.status for run in runs(tmp_path)} == {"FINISHED"}
    assert len(runs(tmp_path, "finetune")) == 6
    store = Store(str(tmp_path / "sweep_store"))
    skipped = [s for key in store.keys("pictures") for s in store.open(key).manifest["meta"]["skipped"]]
    assert len(skipped) == 1 and skipped[0]["id"].endswith(".png") and skipped[0]["reason"]
