"""Run in a fresh process by test_export.py: what a library makes of exported folders, by the lines of their READMEs.

    python exported_folder.py CASES_DIRECTORY FORMAT

Each case is a directory with `pictures.npz` (`inputs`, normalised, and pictures `p0`, `p1`, ...) and the folder FORMAT, which the README
names relative to the case. Writes FORMAT.npz beside it. Nothing of the project is imported.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image


def readme_lines(folder: Path) -> str:
    """The Python of a README."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL))


def by_readme(folder: Path, pictures: list[Image.Image]) -> dict:
    names: dict = {"pictures": pictures}
    exec(compile(readme_lines(folder), str(folder / "README.md"), "exec"), names)
    return names


def hugging_face(folder: Path, pictures: list[Image.Image], inputs: np.ndarray) -> dict:
    import torch
    from transformers import AutoModelForImageClassification, CLIPVisionModelWithProjection, pipeline

    found = by_readme(folder, pictures)
    model, processor = found["model"], found["processor"]
    pixels = torch.from_numpy(inputs)
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    with torch.no_grad():
        output = model(pixel_values=pixels, labels=labels)
        as_tuple = model(pixel_values=pixels, return_dict=False)
        saved = folder.parent / "hf_saved_again"
        model.save_pretrained(saved)
        again = AutoModelForImageClassification.from_pretrained(saved, trust_remote_code=True)(pixel_values=pixels)
        tower, told = CLIPVisionModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and set(told["unexpected_keys"]) == {"head.class_embeddings", "head.value_empty"}, told
    assert torch.equal(as_tuple[0], output.logits) and torch.equal(again.attributions, output.attributions)
    assert torch.isclose(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True, top_k=1)
    return {
        "logits": output.logits.numpy(),
        "attributions": output.attributions.numpy(),
        "readme_logits": found["output"].logits.numpy(),
        "readme_maps": found["maps"].numpy(),
        "pixels": processor(images=pictures, return_tensors="pt")["pixel_values"].numpy(),
        "tower": tower(pixel_values=pixels).image_embeds.detach().numpy(),
        "classes": found["class_names"],
        "piped": [top[0]["label"] for top in classify(pictures)],
        "processor": [type(processor).__name__],
    }


def timm(folder: Path, pictures: list[Image.Image], inputs: np.ndarray) -> dict:
    found = by_readme(folder, pictures)
    return {
        "pixels": found["inputs"].numpy(),
        "readme_logits": found["logits"].numpy(),
        "readme_attributions": found["attributions"].numpy(),
        "tower": found["model"](found["torch"].from_numpy(inputs)).detach().numpy(),
    }


def onnx(folder: Path, pictures: list[Image.Image], inputs: np.ndarray) -> dict:
    found = by_readme(folder, pictures)
    out = {"pixels": found["inputs"], "readme_logits": found["logits"], "readme_maps": found["maps"], "classes": found["class_names"]}
    for number in (1, 2, 5):
        logits, attributions = found["session"].run(["logits", "attributions"], {"pixel_values": inputs[:number]})
        out |= {f"logits_{number}": logits, f"attributions_{number}": attributions}
    return out


def main(cases: Path, library: str) -> None:
    warnings.simplefilter("ignore")
    run = {"hf": hugging_face, "timm": timm, "onnx": onnx}[library]
    for case in sorted(path for path in cases.iterdir() if (path / library).is_dir()):
        os.chdir(case)
        stored = np.load(case / "pictures.npz")
        pictures = [Image.fromarray(stored[name]) for name in sorted(stored) if name != "inputs"]
        np.savez(case / f"{library}.npz", **run(case / library, pictures, stored["inputs"]))
    assert not {"core", "sweep"} & sys.modules.keys()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
