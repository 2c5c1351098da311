"""`python -m sweep.run explain`: what a transferred model sees in pictures, as files and on the terminal."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from core.data.loose_pictures import LoosePicture, find_pictures, read_loose_pictures
from core.data.pictures import PictureError
from sweep.commands.options import check_device, check_directory
from sweep.engines.progress import Progress
from sweep.experiment.config import ConfigError
from sweep.explain.comparison import Comparison, compare, label_settings
from sweep.explain.contact_sheet import Entry, contact_sheet
from sweep.explain.model import ExplainingModel, Maps, UnknownClassError, softmax
from sweep.explain.overlays import coloured
from sweep.report.text import shown_name

DESCRIPTION = """\
Classify pictures and show, from the same pass, which patches spoke for the class (red) and which against it (blue). Writes to --out:
overlays/*.png, contact_sheet.png and explanations.jsonl (a picture a line: class, probability, and the map as rows of numbers that sum to
v(all) - v(empty)).

  python -m sweep.run explain --model explaining/ --image photo.jpg
  python -m sweep.run explain --model explaining/ --image photos/ --class "stop sign" --out stop_signs/
      of every picture: what speaks for a stop sign
  python -m sweep.run explain --model explaining/ --image photos/ --compare kernel_shap
      the same maps by 512 evaluations a picture: beside the model's own on the sheet, as numbers in kernel_shap.jsonl, how long they
      take, and how far both agree
"""
LINES = "explanations.jsonl"
SHEET = "contact_sheet.png"
COMPARED_LINES = "kernel_shap.jsonl"
_ON_SHEET = 24
_ON_TERMINAL = 20
_COMPARED = 16
_BUDGET = 512
_NOTE = "red: speaks for the class, blue: against it"


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "explain",
        help="show what a transferred model sees in pictures",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="what `transfer` wrote")
    parser.add_argument("--image", required=True, metavar="FILE|FOLDER", help="a picture, or a folder of them (folders in it too)")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="class to explain (default: of each picture the predicted one)")
    parser.add_argument("--out", default="explanations", help="directory for the files, new or empty (default: explanations)")
    parser.add_argument("--compare", choices=("kernel_shap",), help=f"explain the first {_COMPARED} pictures so, too")
    parser.add_argument("--budget", type=int, help=f"evaluations a picture of --compare (default: {_BUDGET})")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures in a pass (default: 32)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


@dataclass
class _Results:
    """What is kept of the pictures until the end: little of each, all of the first few."""

    rows: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    compared: list[tuple[NDArray[np.uint8], int]] = field(default_factory=list)
    skipped: list[LoosePicture] = field(default_factory=list)
    number: int = 0


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises ConfigError and its kin for bad input, before the model is run."""
    if options.batch_size < 1:
        raise ConfigError("--batch-size must be at least 1")
    if options.budget is not None and not options.compare:
        raise ConfigError("--budget is that of --compare: leave it out, or give --compare kernel_shap too (the model's own maps take none)")
    budget = _BUDGET if options.budget is None else options.budget
    check_device(options.device)
    out = Path(options.out).expanduser()
    check_directory("--out", out)
    paths = find_pictures(options.image)
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {out} is there already and not empty: give another directory, or remove it")
    model = ExplainingModel.load(Path(options.model).expanduser(), options.device)
    try:
        class_id = None if options.class_name is None else model.class_id(options.class_name)
    except UnknownClassError as error:
        raise ConfigError(f"--class: {error}") from None
    if options.compare:
        try:
            label_settings(model, budget)
        except ValueError as error:
            raise ConfigError(f"--budget {budget}: {error}") from error
    results = _Results()
    progress = Progress("explain", len(paths), "pictures")
    (out / "overlays").mkdir(parents=True, exist_ok=True)
    with open(out / LINES, "w", encoding="utf-8") as lines:
        for batch in _batches(read_loose_pictures(options.image, paths), options.batch_size):
            readable = [loose for loose in batch if not isinstance(loose.picture, PictureError)]
            results.skipped += [loose for loose in batch if isinstance(loose.picture, PictureError)]
            if readable:
                pixels = np.stack([model.preprocessing.pixels(loose.picture) for loose in readable])  # type: ignore[arg-type]
                ids = None if class_id is None else np.full((len(readable), 1), class_id, dtype=np.int64)
                found = model.maps(torch.from_numpy(pixels), ids)
                for n, loose in enumerate(readable):
                    lines.write(json.dumps(_keep(results, model, loose.name, pixels[n], found, n, out), ensure_ascii=False) + "\n")
            progress.advance(len(batch))
    for loose in results.skipped:
        print(f"skipped {loose.name}: {loose.picture}")
    if not results.number:
        raise ConfigError(f"none of the {len(paths)} pictures of {options.image} can be read: give others")
    (out / SHEET).write_bytes(contact_sheet(results.entries, _NOTE))
    print(summary(results.rows, results.number, len(results.skipped)))
    if options.compare:
        print(f"\n{_compared(model, results, budget, options.batch_size, out)}")
    print(f"\nMaps: {out / 'overlays'}   one sheet: {out / SHEET}   numbers: {out / LINES}")


def summary(rows: list[str], number: int, skipped: int) -> str:
    """The table for the terminal."""
    head = f"{'picture':<32} {'class':<24} {'prob.':>6}  {'strongest patch':<16} {'v(all)-v(empty)':>15}"
    more = [f"... and {number - len(rows)} more"] if number > len(rows) else []
    left_out = f"; {skipped} could not be read" if skipped else ""
    return "\n".join([head, *rows, *more, f"{number} pictures explained{left_out}"])


def _batches(pictures: Iterator[LoosePicture], size: int) -> Iterator[list[LoosePicture]]:
    batch: list[LoosePicture] = []
    for loose in pictures:
        batch.append(loose)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _keep(
    results: _Results, model: ExplainingModel, name: str, pixels: NDArray[np.uint8], found: Maps, n: int, out: Path
) -> dict[str, Any]:
    """Write a picture's overlay, keep what the end needs of it, and return its line."""
    probabilities = softmax(found.logits[n : n + 1])[0]
    predicted, explained = int(probabilities.argmax()), int(found.class_ids[n, 0])
    attributions = found.attributions[n, 0]
    shown = pixels.transpose(1, 2, 0)
    drawn = coloured(shown, attributions)
    file = f"overlays/{results.number:05d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-80:]}.png"
    Image.fromarray(drawn).save(out / file)
    row, column = divmod(int(attributions.argmax()), attributions.shape[1])
    title = f"{model.class_names[predicted]} {probabilities[predicted]:.0%}"
    if explained != predicted:
        title += f", explained: {model.class_names[explained]} {probabilities[explained]:.0%}"
    if len(results.rows) < _ON_TERMINAL:
        place = f"row {row + 1}, col. {column + 1}"
        cells = f"{shown_name(name, 32):<32} {shown_name(model.class_names[predicted], 24):<24} {probabilities[predicted]:>6.3f}"
        results.rows.append(f"{cells}  {place:<16} {attributions.sum():>15.3f}")
    if len(results.entries) < _ON_SHEET:
        results.entries.append(Entry(name, title, shown, (drawn,)))
    if len(results.compared) < _COMPARED:
        results.compared.append((pixels, explained))
    results.number += 1
    most = np.argsort(-probabilities, kind="stable")[:5]
    return {
        "picture": name,
        "class": model.class_names[predicted],
        "probability": float(probabilities[predicted]),
        "most_probable": {model.class_names[i]: float(probabilities[i]) for i in most},
        "explained_class": model.class_names[explained],
        "value_empty": float(found.empty[n, 0]),
        "attributions": np.round(attributions.astype(np.float64), 6).tolist(),
        "overlay": file,
    }


def _compared(model: ExplainingModel, results: _Results, budget: int, batch_size: int, out: Path) -> Comparison:
    """Explain the first pictures by Kernel SHAP too, and write its maps beside the model's own."""
    pixels = torch.from_numpy(np.stack([some for some, _ in results.compared]))
    found = compare(model, pixels, np.array([own for _, own in results.compared]), budget, batch_size)
    entries = [
        replace(entry, coloured=(*entry.coloured, coloured(entry.pixels, attributions)))
        for entry, attributions in zip(results.entries, found.attributions, strict=False)
    ]
    beside = f"{_NOTE}; left to right: what the model saw, its own map, Kernel SHAP of {budget} evaluations"
    (out / SHEET).write_bytes(contact_sheet([*entries, *results.entries[len(entries) :]], beside))
    with open(out / COMPARED_LINES, "w", encoding="utf-8") as lines:
        for n, (_, class_id) in enumerate(results.compared):
            line = {
                "picture": results.entries[n].name,
                "explained_class": model.class_names[class_id],
                "budget": budget,
                "attributions": np.round(found.attributions[n].astype(np.float64), 6).tolist(),
                "standard_error": np.round(found.standard_error[n].astype(np.float64), 6).tolist(),
            }
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    return found
