"""`python -m sweep.run export`: a transferred model as other libraries keep theirs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.model_directory import CARD, PROVENANCE, check_new, read_model, write_json
from sweep.commands.options import check_directory
from sweep.export.hugging_face import write_hugging_face
from sweep.export.onnx_file import check_library, write_onnx
from sweep.export.timm_folder import write_timm
from sweep.report import model_card

DESCRIPTION = """\
Write a transferred model as another library keeps its own, so that people run it without this project: logits and, from the same pass, the
attributions of every class, [pictures, classes, patches]. A README says how, in lines to copy.

  python -m sweep.run export --model explaining/ --to hf --out for_the_hub/
      a Hugging Face folder with its code: AutoModelForImageClassification.from_pretrained(DIR, trust_remote_code=True) gives .logits and
      .attributions; AutoImageProcessor prepares the pictures
  python -m sweep.run export --model explaining/ --to timm --out in_timm/
      timm.create_model("local-dir:DIR", pretrained=True) loads the image tower; the README's lines add the head
  python -m sweep.run export --model explaining/ --to onnx --out deployed/
      one file, model.onnx, for any number of pictures; class names and preprocessing are in its metadata (needs pip install -e '.[export]')
"""


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "export",
        help="write a transferred model for transformers, timm or ONNX",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="what `transfer` wrote")
    parser.add_argument("--to", required=True, choices=("hf", "timm", "onnx"), help="whose layout: Hugging Face transformers, timm or ONNX")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for the files, new or empty; its name is the model's")


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises ConfigError and its kin for bad input, before anything is written."""
    out = Path(options.out).expanduser()
    check_directory("--out", out)
    check_new(out)
    if options.to == "onnx":
        check_library()
    model = read_model(Path(options.model).expanduser())
    {"hf": write_hugging_face, "timm": write_timm, "onnx": write_onnx}[options.to](model, out)
    (out / CARD).write_text(model_card.export_text(options.to, out.resolve().name, model) + "\n", encoding="utf-8")
    if model.provenance:
        write_json(out / PROVENANCE, dict(model.provenance))
    print(f"{len(model.class_names)} classes, {model.grid[0]} x {model.grid[1]} patches: {out}\nHow to run it: {out / CARD}")
