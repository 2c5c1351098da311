"""The transfer command: the merge written out, lambda2 by brute force, the card by its own readers, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transfers import CLASS_NAMES, stacked, transfer, write_checkpoint, write_pictures, write_vector

from core.attribution_head import AttributionHead
from core.games.attribution_labels import perturbations
from core.low_rank import LowRankVector, load_vector
from core.model import SelfExplainingClassifier
from core.statistics import paired_proportion_bound
from core.task_vectors import TaskVector
from sweep.store.artifacts import Store

NAMES = ["--class-names", *CLASS_NAMES]


@pytest.fixture
def place(base, tmp_path):
    """A checkpoint and a vector in tmp_path."""
    write_checkpoint(tmp_path / "mine.safetensors", base)
    write_vector(tmp_path / "vector.safetensors", base)
    return tmp_path


def merged(place, base, lambda2):
    """Equation 8 written out, as a classifier."""
    mine, vector = load_file(place / "mine.safetensors"), load_file(place / "vector.safetensors")
    visual = open_clip.CLIP(**json.loads((place / "model" / "open_clip_config.json").read_text())["model_cfg"]).visual.eval()
    visual.load_state_dict({k: mine[f"visual.{k}"] + lambda2 * v for k, v in vector.items()})
    described = json.loads((place / "model" / "attribution_head.json").read_text())
    head = base.head(described["class_names"], described["templates"])
    kind = AttributionHead(described["kind"])
    return SelfExplainingClassifier(visual, head, base.logit_scale, kind).requires_grad_(False)


def inputs_of(base, directory):
    return base.preprocessing.normalise(torch.from_numpy(stacked(directory).transpose(0, 3, 1, 2).copy()))


def provenance(place):
    return json.loads((place / "model" / "provenance.json").read_text())


def test_plain_open_clip_computes_the_merged_models_logits(base, place, signs, capsys):
    assert transfer(place, *NAMES, "--lambda2", "0.7") == 0
    assert "--calibrate" in capsys.readouterr().out  # what would make the maps' size right
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{place / 'model'}")
    with torch.no_grad():
        embeddings = load_file(place / "model" / "head.safetensors")["class_embeddings"]
        logits = clip.eval().logit_scale.exp() * clip.encode_image(signs.inputs, normalize=True) @ embeddings
        expected = merged(place, base, 0.7).logits(signs.inputs)
    torch.testing.assert_close(logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    made = provenance(place)
    assert made["merge"] == {"rule": "addition", "lambda1": 1.0, "lambda2": 0.7} and made["choice"]["rule"] == "given"
    assert made["base"]["fingerprint"] == base.fingerprint and made["vector"]["domain"] == "textures"
    assert str(place) not in json.dumps(made)  # nothing of the user's machine goes into what is given away


def test_auto_keeps_the_accuracy_of_labelled_pictures(base, tmp_path):
    tower = write_checkpoint(tmp_path / "mine.safetensors", base, share=0.0)
    vector = write_vector(tmp_path / "vector.safetensors", base, share=0.4)
    pictures = write_pictures(tmp_path / "pictures", 40)
    grid = ["--lambdas", "0:2:0.25", "--min-normalized-accuracy", "0.9", "--confidence", "0.8"]
    assert transfer(tmp_path, "--validation", str(pictures), "--max-calibration", "4", *grid) == 0
    choice = provenance(tmp_path)["choice"]
    assert choice["rule"] == "accuracy_bound"
    described = json.loads((tmp_path / "model" / "attribution_head.json").read_text())
    assert described["class_names"] == sorted(CLASS_NAMES)  # as the directories are sorted
    # Brute force, in another order of the same arithmetic.
    inputs = inputs_of(base, pictures)
    class_ids = np.array([described["class_names"].index(p.parent.name.replace("_", " ")) for p in sorted(pictures.rglob("*.png"))])
    model, correct = merged(tmp_path, base, 0.0), {}
    for lambda2 in np.arange(0, 2.01, 0.25):
        model.visual.load_state_dict({k: tower[k] + lambda2 * vector.weights[k] for k in tower})
        correct[lambda2] = model.logits(inputs).argmax(1).numpy() == class_ids
    kept = [0.0]
    for lambda2 in list(correct)[1:]:
        if paired_proportion_bound(correct[lambda2], correct[0.0], 0.8).low < 0.9:
            break
        kept.append(lambda2)
    assert 0.0 < kept[-1] < 2.0, "the grid must reach past the bound for this test to say anything"
    assert choice["chosen"]["lambda2"] == kept[-1] and choice["chosen"]["accuracy"] == correct[kept[-1]].mean()
    assert choice["points"][-1]["lambda2"] == kept[-1] + 0.25  # the first beyond the bound ends the search


def test_auto_without_labels_takes_the_least_infidelity_and_fits_the_scale(base, place):
    pictures = write_pictures(place / "loose", 6, by_class=False)
    assert transfer(place, *NAMES, "--calibrate", str(pictures), "--lambdas", "0,1,2", "--head", "cosine") == 0
    choice = provenance(place)["choice"]
    assert choice["rule"] == "infidelity" and [p["lambda2"] for p in choice["points"]] == [0.0, 1.0, 2.0]
    kept = [p for p in choice["points"] if p["agreement"] >= 0.95]
    assert choice["chosen"] == min(kept, key=lambda p: p["infidelity"])
    # Infidelity and scale from plain forward passes on pictures with patches painted over, and least squares by NumPy.
    inputs = inputs_of(base, pictures)
    before, after = merged(place, base, 0.0), merged(place, base, choice["chosen"]["lambda2"])
    class_ids = before.logits(inputs).argmax(1)
    removed = perturbations(49, 64)
    hidden = torch.from_numpy(removed).view(64, 1, 7, 7).repeat_interleave(8, 2).repeat_interleave(8, 3)
    value = lambda x: 3.5 / base.logit_scale * before.logits(x).gather(1, class_ids[:, None])[:, 0]  # noqa: E731
    change = np.stack([(value(inputs) - value(torch.where(h, 0.0, inputs))).numpy() for h in hidden], axis=1)
    predicted = after(inputs, class_ids).attributions.numpy() @ removed.T
    (scale,), *_ = np.linalg.lstsq(predicted.reshape(-1, 1), change.ravel(), rcond=None)
    gaps = scale * predicted - change
    assert choice["chosen"]["scale"] == pytest.approx(scale, rel=1e-3)
    assert choice["chosen"]["infidelity"] == pytest.approx(np.square(gaps).mean(), rel=1e-3)
    assert json.loads((place / "model" / "attribution_head.json").read_text())["scale"] == pytest.approx(choice["chosen"]["scale"])


def test_the_card_is_read_by_the_hubs_own_reader(place):
    pictures = write_pictures(place / "loose", 4, by_class=False)
    (pictures / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert transfer(place, *NAMES, "--lambda2", "1", "--calibrate", str(pictures), "--license", "cc-by-4.0") == 0
    card = ModelCard.load(place / "model" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.base_model is None  # no model of the Hub
    assert card.data.library_name == "open_clip" and card.data.pipeline_tag == "image-classification"
    merge = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert merge["merge_method"] == "addition" and merge["models"][1] == {"model": "vector.safetensors", "parameters": {"weight": 1.0}}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["score", "this model", "the checkpoint", "chance", "ceiling"]
    point = provenance(place)["choice"]["chosen"]
    scores = {row[0]: row[1:] for row in rows[2:]}
    assert float(scores["infidelity at the best scale (smaller is better)"][0]) == pytest.approx(point["infidelity"], rel=1e-3)
    assert scores["predictions that are the checkpoint's"][2] == "0.1"  # chance, of ten classes
    assert "## Limits" in card.text and provenance(place)["calibration"] == {"source": "loose", "num_pictures": 4, "num_skipped": 1}


def test_vectors_come_from_stores_and_from_runs(base, place, monkeypatch):
    store = Store(str(place / "store"))
    source = place / "vector.safetensors"
    compute = lambda directory: (directory / "explainability_vector.safetensors").write_bytes(source.read_bytes()) and {}  # noqa: E731
    artifact = store.get_or_compute("ab" + "0" * 62, stage="vector", params={}, inputs=[], compute=compute)
    location = f"{place}/store/artifacts/ab/{artifact.key}"
    assert transfer(place, *NAMES, "--lambda2", "1", "--vector", location) == 0
    by_key = ["--store", f"{place}/store", "--vector", artifact.key, "--out", str(place / "by_key")]
    assert transfer(place, *NAMES, "--lambda2", "1", *by_key) == 0
    assert provenance(place)["vector"]["source"] == artifact.key
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{place / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    run = client.create_run(client.create_experiment("sweeps", (place / "mlartifacts").as_uri())).info.run_id
    client.log_artifact(run, str(artifact.path("explainability_vector.safetensors")), "vectors")
    for number, reference in enumerate((f"runs:/{run}", f"runs:/{run}/vectors/explainability_vector.safetensors")):
        more = ["--vector", reference, "--tracking-uri", uri, "--out", str(place / f"from_run_{number}")]
        assert transfer(place, *NAMES, "--lambda2", "1", *more) == 0
        written = {(place / out / "open_clip_model.safetensors").read_bytes() for out in ("model", "by_key", f"from_run_{number}")}
        assert len(written) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (NAMES, "--lambda2 auto chooses by pictures.*--validation.*--calibrate"),
        (["--lambda2", "1"], "name the classes: --classes FILE"),
        ([*NAMES, "--lambda2", "much"], "auto or a number, not 'much'"),
        (["--class-names", "one", "one", "--lambda2", "1"], "class names must be two or more, all different.*twice.*one"),
        ([*NAMES, "--lambda2", "1", "--templates", "a photo"], "must hold '{}' once"),
        ([*NAMES, "--lambda2", "1", "--base", "nothing"], "unknown base model 'nothing'"),
        ([*NAMES, "--lambda2", "1", "--vector", "nowhere"], "there is no vector nowhere.*runs:/RUN_ID"),
        ([*NAMES, "--lambda2", "1", "--vector", "0" * 64, "--store", "nowhere"], "there is no artifact 0000"),
        ([*NAMES, "--lambda2", "1", "--vector", "runs:/0123"], "there is no MLflow database .*mlflow.db"),
        ([*NAMES, "--lambda2", "nan"], "auto or a finite number, not nan"),
        ([*NAMES, "--lambda2", "1e30"], "at lambda2 = 1e\\+30 the model gives no finite numbers: take a smaller --lambda2"),
        ([*NAMES, "--lambda2", "1e38"], "the model gives no finite numbers"),  # there the weights themselves are none
        ([*NAMES, "--lambda2", "1", "--checkpoint", "nowhere"], "there is no checkpoint nowhere"),
        ([*NAMES, "--calibrate", "nowhere"], "there is no picture and no directory nowhere"),
        (["--classes", "nowhere", "--lambda2", "1"], "--classes nowhere cannot be read"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_fix_and_nothing_is_written(place, monkeypatch, capsys, more, message):
    monkeypatch.chdir(place)
    assert transfer(place, *more) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert sorted(path.name for path in place.iterdir()) == ["mine.safetensors", "vector.safetensors"]


def test_a_run_that_is_not_recorded_is_refused(place, new_database, capsys):
    more = ["--vector", "runs:/0123", "--tracking-uri", f"sqlite:///{new_database}"]
    assert transfer(place, *NAMES, "--lambda2", "1", *more) == 2
    assert re.search("runs:/0123 cannot be had .*: check the id, or give the --tracking-uri", capsys.readouterr().err)
    assert not (place / "model").exists()


def test_a_vector_of_another_base_and_pictures_of_other_classes_are_refused(base, place, capsys):
    write_vector(place / "other.safetensors", base, fingerprint="0123456789abcdef")
    assert transfer(place, *NAMES, "--lambda2", "1", "--vector", str(place / "other.safetensors")) == 2
    assert "belongs to the base 0123456789ab" in capsys.readouterr().err
    pictures = write_pictures(place / "pictures", 10)
    assert transfer(place, "--class-names", "cat", "dog", "--validation", str(pictures)) == 2
    assert "has 10 classes that are not named" in capsys.readouterr().err
    far = {k: 0.02 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)) for k, v in base.visual.state_dict().items()}
    save_file(far, place / "far.safetensors")
    assert transfer(place, *NAMES, "--lambda2", "1", "--checkpoint", str(place / "far.safetensors")) == 2
    assert "--trust-base" in capsys.readouterr().err
    assert not (place / "model").exists()


def test_class_names_come_from_a_file_in_its_order(place):
    (place / "names.txt").write_text("\n".join(reversed(CLASS_NAMES)) + "\n\n")
    assert transfer(place, "--classes", str(place / "names.txt"), "--lambda2", "0") == 0
    described = json.loads((place / "model" / "attribution_head.json").read_text())
    assert described["class_names"] == list(reversed(CLASS_NAMES))
    head = load_file(place / "model" / "head.safetensors")["class_embeddings"]
    torch.testing.assert_close(F.normalize(head, dim=0), head, atol=1e-5, rtol=0)


def test_a_vector_of_low_rank_is_added_and_written_and_its_cost_is_told(base, place, capsys):
    pictures = str(write_pictures(place / "pictures"))
    assert transfer(place, "--validation", pictures, "--lambda2", "0.7", "--rank", "3") == 0
    assert "rank 3:" in capsys.readouterr().out
    whole, low = load_file(place / "vector.safetensors"), load_vector(place / "model" / "vector.safetensors", base.fingerprint)
    mine, written = load_file(place / "mine.safetensors"), load_file(place / "model" / "open_clip_model.safetensors")
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    u, s, vh = torch.linalg.svd(whole[name], full_matrices=False)
    torch.testing.assert_close(low.weights[name], u[:, :3] * s[:3] @ vh[:3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(written[f"visual.{name}"], mine[f"visual.{name}"] + 0.7 * low.weights[name])
    cost = provenance(place)["vector"]["cost_of_rank"]
    difference = sum(((whole[k] - low.weights[k]) ** 2).sum() for k in whole).sqrt() / sum((v**2).sum() for v in whole.values()).sqrt()
    assert cost["relative_error"] == pytest.approx(difference.item(), rel=1e-3)
    assert cost["with_whole_vector"]["infidelity"] > 0
    assert "of the vector's numbers" in (place / "model" / "README.md").read_text()


def test_a_file_of_low_rank_is_a_vector_like_any_other(base, place):
    LowRankVector.of(TaskVector.load(place / "vector.safetensors"), 3).save(place / "vector.safetensors", {"domain": "textures"})
    assert transfer(place, *NAMES, "--lambda2", "0.7") == 0
    low = load_vector(place / "vector.safetensors")
    mine, written = load_file(place / "mine.safetensors"), load_file(place / "model" / "open_clip_model.safetensors")
    for name, weight in low.weights.items():
        torch.testing.assert_close(written[f"visual.{name}"], mine[f"visual.{name}"] + 0.7 * weight)
