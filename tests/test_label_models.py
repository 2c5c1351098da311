"""Labels and sweeps together: a sweep's model labels a data set, and a sweep takes the labels that the label command wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_sets import write_drawn
from in_process import EnginesHere, compute, engines_here, graph_of
from labelling import all_labels, arguments, label, maps
from safetensors.torch import save_file

from core.model import Base
from sweep import run as command_line
from sweep.experiment.sources import Source
from sweep.stages.graph import SweepGraph
from sweep.stages.imported_labels import ImportedLabels
from sweep.store.artifacts import Store

SMALL = [
    *("--validation-share", "0.1"),
    *("--alphas", "0.5", "--num-steps", "4", "--num-source-steps", "4"),
    *("--max-train-pictures", "40", "--max-test-pictures", "12", "--max-test-labels", "4"),
    *("--budget", "104", "--test-budget", "104", "--search", "grid", "--lambdas", "0,0.8", "--precision", "float32"),
]
SAME = ["--estimator", "size_adjusted", "--budget", "104", "--shard-size", "25"]
"""The sweep's train settings for the label command."""


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> list[str]:
    """Two domains with a location of their own, which both commands read."""
    directory = tmp_path_factory.mktemp("domains")
    return [str(write_drawn(directory / name, name, train=60, test=20)) for name in ("traffic_signs", "land_cover")]


@pytest.fixture(scope="module")
def made(domains, tmp_path_factory) -> tuple[Store, SweepGraph]:
    """A sweep whose prediction-only model and own train labels of traffic signs are made."""
    store = Store(str(tmp_path_factory.mktemp("sweep") / "store"))
    graph = graph_of(store, "--domains", *domains, *SMALL)
    compute(store, graph.labels("traffic_signs", "train"))
    return store, graph


@pytest.fixture(scope="module")
def model(made) -> str:
    store, graph = made
    key = graph.prediction_only(Source("traffic_signs", ("traffic_signs",))).key
    return f"{store.url}/artifacts/{key[:2]}/{key}"


@pytest.fixture(scope="module")
def labels(domains, model, tmp_path_factory) -> Path:
    """Labels of the whole train split of traffic signs, by the sweep's model, with the sweep's settings."""
    out = tmp_path_factory.mktemp("labels") / "out"
    with pytest.MonkeyPatch.context() as patch:
        engines_here(patch)
        label(Path(domains[0]), out, *SAME, "--model", model)
    return out


@pytest.fixture
def here(monkeypatch) -> EnginesHere:
    return engines_here(monkeypatch)


def test_a_fine_tuned_model_labels_its_own_classes(domains, labels, tmp_path, here):
    label(Path(domains[0]), tmp_path / "zero", *SAME, "--max-pictures", "25")
    found, zero_shot = all_labels(labels), all_labels(tmp_path / "zero")
    assert len(found) == 60 and zero_shot["id"].tolist() == found["id"].tolist()[:25]
    assert np.abs(maps(found)[:25] - maps(zero_shot)).max() > 1e-3
    settings = [json.loads((out / "labels.json").read_text()) for out in (labels, tmp_path / "zero")]
    assert settings[0]["model"]["fingerprint"] != settings[1]["model"]["fingerprint"]
    assert settings[0]["model"]["base"] == settings[1]["model"]["base"]
    assert settings[0]["templates"] == settings[1]["templates"] and settings[0]["class_names"] == settings[1]["class_names"]


def refusal(capsys, *given: str) -> str:
    assert command_line.main(list(given)) == 2
    return capsys.readouterr().err


def test_models_that_cannot_label_a_data_set_are_refused(domains, made, model, tmp_path, here, capsys):
    store, graph = made

    def refused(chosen: str, data: str = domains[0], *more: str) -> str:
        return refusal(capsys, *arguments(Path(data), tmp_path / "out", *SAME, "--model", chosen, *more))

    assert "same class names in the same order" in refused(model, domains[1])
    head = graph.head("traffic_signs").key
    assert "is a head artifact: give one of the stage finetune" in refused(f"{store.url}/artifacts/{head[:2]}/{head}")
    union = Source("both", ("traffic_signs", "land_cover"))
    compute(store, graph.prediction_only(union))
    key = graph.prediction_only(union).key
    assert "union of 2 domains" in refused(f"{store.url}/artifacts/{key[:2]}/{key}")
    assert "no artifact" in refused(model[:-1] + ("0" if model[-1] != "0" else "1"))
    assert not (tmp_path / "out" / "data").exists()
    assert here.works == []


@pytest.fixture(scope="module")
def other_base(base: Base, tmp_path_factory) -> str:
    """A model directory with the miniature's tower, its weights a little larger."""
    directory = tmp_path_factory.mktemp("base") / "other"
    directory.mkdir()
    tower = {"image_size": 56, "layers": 3, "width": 96, "patch_size": 8, "head_width": 32}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    settings = {"embed_dim": 64, "vision_cfg": tower, "text_cfg": text}
    preprocessing = {"mean": base.preprocessing.mean, "std": base.preprocessing.std}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": preprocessing}))
    weights = {k: v.contiguous() * (1.01 if k == "visual.proj" else 1.0) for k, v in base.clip.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors")
    return str(directory)


def test_a_model_or_labels_of_another_base_are_refused(domains, model, labels, other_base, tmp_path, here, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = arguments(Path(domains[0]), tmp_path / "out", *SAME, "--model", model, "--base", other_base)
    assert f"was fine-tuned from another base than {other_base}" in refusal(capsys, *asked)
    assert not (tmp_path / "out" / "data").exists()
    sweep = ["all_pairs", "--domains", *domains, *SMALL, "--labels", f"traffic_signs={labels}", "--base", other_base]
    assert "of another base than the sweep's" in refusal(capsys, *sweep)
    assert {work.kind for work in here.works} == {"base"}  # the weights must be looked at, and nothing else was done


def test_a_sweep_takes_labels_that_its_model_made_for_its_own(made, domains, labels, tmp_path):
    """Role, seed and settings are the same, and so are the coalitions: the labels are the sweep's own to float32's last digits."""
    store, graph = made
    taken = graph_of(store, "--domains", *domains, *SMALL, "--labels", f"traffic_signs={labels}")
    own, imported = (g.labels("traffic_signs", "train") for g in (graph, taken))
    assert isinstance(imported, ImportedLabels) and imported.key != own.key
    computed = compute(store, imported)
    assert {work.kind for work in computed} == {"imported_labels"}
    ours, theirs = own.load(store), imported.load(store)
    assert len(ours) == len(theirs) == 36  # of 60 labelled pictures, 36 are in the sweep's train split, 24 are not
    np.testing.assert_array_equal(own.rows(store), imported.rows(store))
    # Which pictures share a batch differs, and with it the order of sums in float32.
    np.testing.assert_allclose(theirs.attributions, ours.attributions, atol=1e-4)
    np.testing.assert_allclose(theirs.standard_error, ours.standard_error, atol=1e-4)
    np.testing.assert_allclose(imported.mean_map(store), own.mean_map(store), atol=1e-4)
    assert np.abs(ours.attributions).mean() > 100 * 1e-4
    for role in ("validation", "test", "ceiling"):
        assert taken.labels("traffic_signs", role).key == graph.labels("traffic_signs", role).key
    assert taken.labels("land_cover", "train").key == graph.labels("land_cover", "train").key
    source = Source("traffic_signs", ("traffic_signs",))
    models = [g.self_explaining(source, 0.5) for g in (graph, taken)]
    assert models[0].key != models[1].key
    compute(store, *models)
    first, second = (m.load(store) for m in models)
    assert max((first[k] - second[k]).abs().max() for k in first) < 1e-4


def shuffled(labels: Path, out: Path, *, keep: int | None = None) -> Path:
    """The same labels, their rows dealt to the files in another order; of the first `keep` rows only."""
    (out / "data").mkdir(parents=True)
    files = sorted((labels / "data").iterdir())
    table = pa.concat_tables([pq.read_table(path) for path in files])
    order = np.random.default_rng(3).permutation(len(table))[:keep]
    for n, rows in enumerate(np.array_split(order, len(files))):
        pq.write_table(table.take(pa.array(rows)), out / "data" / files[n].name)
    (out / "labels.json").write_bytes((labels / "labels.json").read_bytes())
    return out


def test_labels_are_joined_to_pictures_by_id_whatever_their_order(made, domains, labels, tmp_path):
    store, graph = made
    own = graph.labels("traffic_signs", "train").load(store)
    for keep in (None, 40):
        other = shuffled(labels, tmp_path / f"shuffled {keep}", keep=keep)
        taken = graph_of(store, "--domains", *domains, *SMALL, "--labels", f"traffic_signs={other}")
        imported = taken.labels("traffic_signs", "train")
        # The fingerprint of labels is that of their description and file names: these are others' under the same names.
        imported = replace(imported, data=replace(imported.data, fingerprint=str(keep)))
        compute(store, imported)
        rows = imported.rows(store)
        assert (np.diff(rows) > 0).all() and len(rows) == len(imported.load(store))
        assert len(rows) == 36 if keep is None else 15 < len(rows) < 36
        np.testing.assert_allclose(imported.load(store).attributions, own.attributions[rows], atol=1e-4)
        source = Source("traffic_signs", ("traffic_signs",))
        data = replace(taken.self_explaining(source, 0.5), labels=(imported,)).training_data(store)
        split = taken.pictures("traffic_signs").load(store, "train")
        assert len(data) == len(rows) and data.class_ids.tolist() == split.class_ids[rows].tolist()
        everything = torch.arange(len(rows))
        assert torch.equal(data.pictures.gather(everything), split.pixels.gather(torch.from_numpy(rows)))
        np.testing.assert_array_equal(data.attribution_labels.numpy(), imported.load(store).attributions)


def test_labels_of_other_pictures_are_refused(made, domains, labels, tmp_path):
    store, _ = made
    other = tmp_path / "renamed"
    (other / "data").mkdir(parents=True)
    (other / "labels.json").write_text((labels / "labels.json").read_text().replace('"key": "', '"key": "renamed '))
    for path in (labels / "data").iterdir():
        table = pq.read_table(path)
        ids = pa.array([f"elsewhere/{picture_id}" for picture_id in table["id"].to_pylist()])
        pq.write_table(table.set_column(0, "id", ids), other / "data" / path.name)
    taken = graph_of(store, "--domains", *domains, *SMALL, "--labels", f"traffic_signs={other}")
    with pytest.raises(ValueError, match="it labels other pictures .*; give the labels of this data set"):
        compute(store, taken.labels("traffic_signs", "train"))


def test_a_whole_sweep_with_labels_that_were_given_labels_no_training_picture(
    domains, labels, tmp_path, here, monkeypatch, capsys, new_database
):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(new_database, "mlflow.db")
    assert command_line.main(["all_pairs", "--domains", *domains, *SMALL, "--labels", f"traffic_signs={labels}"]) == 0
    assert "traffic_signs -> land_cover" in capsys.readouterr().out
    shards = [work for work in here.works if work.kind == "label"]
    assert sorted({work.title for work in shards}) == [
        *(f"land_cover {role}" for role in ("ceiling", "test", "train", "validation")),
        *(f"traffic_signs {role}" for role in ("ceiling", "test", "validation")),
    ]
    store = Store(str(tmp_path / "sweep_store"))
    (key,) = store.keys("result")
    assert len(pd.read_parquet(store.open(key).path("cells.parquet"))) == 2 * (2 + 1)
