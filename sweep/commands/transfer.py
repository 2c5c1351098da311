"""`python -m sweep.run transfer`: a fine-tuned checkpoint learns to explain itself. Options to request."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.attribution_head import HEAD_KINDS
from core.data.domains import DEFAULT_TEMPLATES
from core.games.lambda2 import Bound
from core.merging.addition import Addition
from core.merging.rules import MERGE_RULES, parse_rule
from sweep.commands.options import check_device, numbers, parsed
from sweep.commands.target_pictures import MAX_CALIBRATION, MAX_VALIDATION
from sweep.commands.transferring import AUTO_LAMBDAS, TransferRequest, run_transfer
from sweep.experiment.config import ConfigError

DESCRIPTION = """\
Add an explainability vector to your fine-tuned CLIP classifier. What comes out is a directory that plain open_clip loads, with class
names, class embeddings, the settings of the attribution head and a model card; `explain` and sweep.load read it.

  python -m sweep.run transfer --checkpoint mine.pt --base ViT-B-32:openai --vector vector.safetensors \\
      --validation my_pictures/ --out explaining/
      a directory per class in my_pictures/: classes, lambda2 and the maps' size follow from them
  python -m sweep.run transfer --checkpoint mine.pt --vector runs:/RUN_ID --classes names.txt --calibrate photos/ --out explaining/
      loose pictures without labels: lambda2 as the vector's file recommends (`recommend --write`), else by infidelity
  python -m sweep.run transfer --checkpoint mine.pt --vector vector.safetensors --classes names.txt --lambda2 1 --out explaining/
      no pictures at all: the vector as it is; the maps' size is then not fitted
  python -m sweep.run transfer --checkpoint mine.pt --vector vector.safetensors --merge fisher:source_share=0.3 \\
      --validation my_pictures/ --out explaining/
      merged as `universal` of the miniature merges, by Fisher information: your model's is measured on the pictures, the source's comes
      with the vector (a key of a store, or a file of `recommend --write`)
  python -m sweep.run transfer --checkpoint miniature --vector miniature --class-names cat dog --calibrate photos/ --out explaining/
      nothing but pictures: the base itself as a zero-shot classifier, with the vector in this package (a toy: it knows drawings)
"""


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "transfer",
        help="make your own fine-tuned CLIP checkpoint explain itself",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to merge")
    what.add_argument(
        "--checkpoint",
        required=True,
        help="your fine-tuned model: a file (.safetensors, .pt, .bin) or directory, as open_clip, Hugging Face CLIP, timm or the "
        "task-vectors repository name its weights; pickles are read weights only; what --base says: the base itself, zero-shot",
    )
    what.add_argument("--vector", required=True, help="FILE.safetensors, STORE/artifacts/XX/KEY, MLflow's runs:/RUN_ID, or miniature")
    what.add_argument("--base", default="miniature", help="what both were fine-tuned from: open_clip NAME:TAG or directory (miniature)")
    what.add_argument("--trust-base", action="store_true", help="do not ask whether the weights lie near enough to the base's")
    what.add_argument("--out", required=True, help="directory of the model, new or empty")

    classes = parser.add_argument_group("classes, in the order of your labels")
    names = classes.add_mutually_exclusive_group()
    names.add_argument("--classes", metavar="FILE", help="class names, one a line (default: those of --validation)")
    names.add_argument("--class-names", nargs="+", metavar="NAME", help="class names, here")
    classes.add_argument(
        "--templates", nargs="+", default=list(DEFAULT_TEMPLATES), metavar="TEMPLATE", help="prompts with one {} each, as in your training"
    )

    how = parser.add_argument_group("how the vector is put in, and how much of it")
    rules = ", ".join(rule.text for rule in MERGE_RULES.values())
    how.add_argument(
        "--merge",
        default=Addition().text,
        metavar="RULE[:KEY=VALUE,...]",
        help=f"addition (eq. 8, default) or another rule of sweeps; with their parameters: {rules}",
    )
    how.add_argument("--lambda2", default="auto", help="auto (default), or a number: 0 is your checkpoint, 1 the whole vector")
    how.add_argument("--validation", metavar="PICTURES", help="labelled (directory per class, or Parquet): auto keeps their accuracy")
    how.add_argument("--calibrate", metavar="PICTURES", help="unlabelled: maps' size is fitted on them (default: --validation)")
    how.add_argument("--lambdas", help=f"grid of auto (default: {AUTO_LAMBDAS[0]:g}:{AUTO_LAMBDAS[-1]:g}:0.1)")
    how.add_argument("--min-normalized-accuracy", type=float, default=0.95, help="share of the accuracy to keep (default: 0.95)")
    how.add_argument("--confidence", type=float, default=0.95, help="that it is kept, one-sided; 0.5: as measured (default: 0.95)")
    of_atlas = "with atlas and no --validation twice its num_pictures"
    how.add_argument("--max-calibration", type=int, help=f"used, 65 evaluations each (default: {MAX_CALIBRATION}; {of_atlas})")
    how.add_argument("--max-validation", type=int, default=MAX_VALIDATION, help="pictures used (default: %(default)s)")
    how.add_argument("--rank", type=int, help="add the vector's leading directions only, so many a matrix; writes them as a small file too")
    how.add_argument("--head", choices=HEAD_KINDS, default="efficiency", help="efficiency: sums to v(all) - v(empty); cosine: as published")

    where = parser.add_argument_group("where")
    where.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    where.add_argument("--store", help="store that --vector is a key of: a directory or URL")
    where.add_argument("--tracking-uri", help="MLflow that runs:/ vectors come from (default: what `mlflow ui` opens here)")
    where.add_argument("--license", help="licence of your model, for its card; left out where you name none")


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises ConfigError and its kin for bad input."""
    run_transfer(request_of(options))


def request_of(options: argparse.Namespace) -> TransferRequest:
    """Raises ConfigError for options that do not go together."""
    check_device(options.device)
    if not 0.0 <= options.min_normalized_accuracy <= 1.0 or not 0.0 < options.confidence < 1.0:
        raise ConfigError("--min-normalized-accuracy must lie in [0, 1] and --confidence between 0 and 1")
    return TransferRequest(
        checkpoint=options.checkpoint,
        vector=options.vector,
        out=options.out,
        base=options.base,
        class_names=tuple(options.class_names) if options.class_names else _names_in(options.classes),
        templates=tuple(options.templates),
        merge=parsed("--merge", parse_rule, options.merge) or Addition(),
        lambda2=_lambda2(options.lambda2),
        lambdas=numbers(options.lambdas) or AUTO_LAMBDAS,
        bound=Bound(options.min_normalized_accuracy, options.confidence),
        calibrate=options.calibrate,
        validation=options.validation,
        max_calibration=options.max_calibration,
        max_validation=options.max_validation,
        head=options.head,
        rank=options.rank,
        trust_base=options.trust_base,
        device=options.device,
        store=options.store,
        tracking_uri=options.tracking_uri,
        license=options.license,
    )


def _names_in(file: str | None) -> tuple[str, ...] | None:
    """The lines of a file that are not empty."""
    if file is None:
        return None
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes {file} cannot be read ({error}): give a text file with a class name a line") from error
    return tuple(line.strip() for line in lines if line.strip())


def _lambda2(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--lambda2 is auto or a number, not {text!r}") from None
