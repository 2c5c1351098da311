"""The explain command: its files say what the model says, damage and bombs are named and skipped, Kernel SHAP stands beside."""

from __future__ import annotations

import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from transfers import write_explaining_model, write_pictures

import sweep
from core.attribution_head import AttributionHead
from core.metrics import correlation, iou_at
from sweep import run as command_line
from sweep.explain.comparison import compare


@pytest.fixture(scope="module")
def directory(base, tmp_path_factory):
    return write_explaining_model(tmp_path_factory.mktemp("models") / "signs", base, AttributionHead("efficiency"))


def explain(directory, image, out, *more):
    return command_line.main(["explain", "--model", str(directory), "--image", str(image), "--out", str(out), *more])


def lines(out):
    return [json.loads(line) for line in (out / "explanations.jsonl").read_text().splitlines()]


def picture_bomb():
    """A PNG of a few bytes that announces 60000 x 60000 pixels."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_files_hold_what_the_model_says_and_damage_is_skipped_by_name(directory, tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures", 9)
    (pictures / "cut.png").write_bytes(next(pictures.rglob("*.png")).read_bytes()[:70])
    (pictures / "bomb.png").write_bytes(picture_bomb())
    (pictures / "notes.txt").write_text("no picture")
    assert explain(directory, pictures, tmp_path / "out", "--batch-size", "4") == 0
    shown = capsys.readouterr().out
    assert "skipped bomb.png: its header announces too many pixels, scale it down" in shown
    assert "skipped cut.png: it cannot be decoded" in shown
    assert "9 pictures explained; 2 could not be read" in shown
    found = lines(tmp_path / "out")
    own = sweep.load(directory).explain(sorted(pictures.rglob("[0-9]*.png")))
    assert [line["picture"] for line in found] == [p.relative_to(pictures).as_posix() for p in sorted(pictures.rglob("[0-9]*.png"))]
    np.testing.assert_allclose([line["attributions"] for line in found], own.maps[:, 0], atol=2e-5)
    np.testing.assert_allclose([line["value_empty"] for line in found], own.base_values[:, 0], atol=1e-5)
    assert [line["class"] for line in found] == np.asarray(own.output_names)[:, 0].tolist()
    for line in found:
        overlay = Image.open(tmp_path / "out" / line["overlay"])
        assert overlay.size == (224, 224) and line["probability"] == max(line["most_probable"].values())
    sheet = Image.open(tmp_path / "out" / "contact_sheet.png")
    assert sheet.width > 1000 and sheet.height > 400


def test_one_picture_and_one_class(directory, tmp_path, capsys):
    picture = next(write_pictures(tmp_path / "pictures", 1, by_class=False).iterdir())
    assert explain(directory, picture, tmp_path / "out", "--class", "stop sign") == 0
    (line,) = lines(tmp_path / "out")
    assert line["picture"] == picture.name and line["explained_class"] == "stop sign"
    np.testing.assert_allclose(line["attributions"], sweep.load(directory).explain(picture, "stop sign").maps[0, 0], atol=2e-5)
    assert picture.name in capsys.readouterr().out


def test_kernel_shap_beside_it_is_the_label_engines_on_the_same_model(base, directory, tmp_path, capsys, signs):
    pictures = write_pictures(tmp_path / "pictures", 3, by_class=False)
    assert explain(directory, pictures, tmp_path / "out", "--compare", "kernel_shap", "--budget", "256") == 0
    shown = capsys.readouterr().out
    told = r"Kernel SHAP \(256 evaluations, 3 pictures.*own maps +[\d.]+ ms.*Kernel SHAP +[\d.]+ ms.*\d+ times as long"
    assert re.search(told, shown, re.DOTALL)
    compared = [json.loads(line) for line in (tmp_path / "out" / "kernel_shap.jsonl").read_text().splitlines()]
    own = lines(tmp_path / "out")
    for line, beside in zip(own, compared, strict=True):
        assert (beside["picture"], beside["explained_class"], beside["budget"]) == (line["picture"], line["explained_class"], 256)
        assert np.shape(beside["attributions"]) == np.shape(beside["standard_error"]) == (7, 7)
    told_correlation = float(re.search(r"correlation (-?[\d.]+)", shown)[1])
    maps = [np.reshape([line["attributions"] for line in some], (3, 49)) for some in (own, compared)]
    assert told_correlation == pytest.approx(correlation(*maps), abs=0.006)
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 3 * 3 * 160  # three pictures, three panels each
    model = sweep.load(directory)
    pixels = signs.pixels[:2]
    class_ids = model.maps(pixels).class_ids[:, 0]
    found = compare(model, pixels, class_ids, 320, 32)
    # The shap library explains the same game from plain masked passes; both estimates differ by their sampling errors only.
    expected = shap_maps(model, base, pixels, class_ids)
    own = model.maps(pixels).attributions.reshape(2, 49)
    assert found.correlation == pytest.approx(correlation(own, expected), abs=0.15)
    assert found.iou_at_10 == pytest.approx(iou_at(10, own, expected), abs=0.25)
    assert found.kernel_shap_s > found.own_s > 0 and 0 < found.relative_error < 1 and found.ratio == found.kernel_shap_s / found.own_s


def shap_maps(model, base, pixels, class_ids):
    import shap
    import torch

    maps = []
    for picture, class_id in zip(base.preprocessing.normalise(pixels), class_ids, strict=True):

        def value(coalitions, picture=picture, class_id=class_id):
            shown = torch.from_numpy(coalitions).float().view(-1, 1, 7, 7).repeat_interleave(8, 2).repeat_interleave(8, 3)
            with torch.no_grad():
                cls, _ = model.classifier.features(picture * shown)
            return (3.5 * cls @ model.classifier.head[:, class_id]).numpy()

        explainer = shap.KernelExplainer(value, np.zeros((1, 49)))
        maps.append(explainer.shap_values(np.ones((1, 49)), nsamples=1000, l1_reg=False, silent=True)[0])
    return np.stack(maps)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class", "stop sgn"], "no class 'stop sgn': did you mean 'stop sign'"),
        (["--image", "nowhere"], "there is no picture and no directory nowhere"),
        (["--model", "."], "holds no model that explains.*make one with `transfer`"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--out", "."], "not empty: give another directory"),
        (["--compare", "kernel_shap", "--budget", "3"], "--budget 3: .*at least 96"),
        (["--compare", "kernel_shap", "--budget", "1000000000"], "--budget 1000000000: .*give at most"),
        (["--budget", "256"], "--budget is that of --compare: leave it out"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_fix(directory, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    pictures = write_pictures(tmp_path / "pictures", 1)
    assert explain(directory, pictures, tmp_path / "out", *more) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_damage_alone_is_refused(directory, tmp_path, capsys):
    (tmp_path / "damage").mkdir()
    (tmp_path / "damage" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    assert explain(directory, tmp_path / "damage", tmp_path / "out") == 2
    assert "none of the 1 pictures" in capsys.readouterr().err
