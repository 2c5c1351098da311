"""`python -m sweep.run recommend`: which of a store's vectors to try on a new target, and what says so."""

from __future__ import annotations

import argparse
from typing import Any

from core.data.domains import DEFAULT_TEMPLATES
from core.games.lambda2 import Bound
from core.metrics import SCORES
from sweep.commands.options import check_device
from sweep.commands.recommendation import RecommendRequest
from sweep.commands.recommending import run_recommend

DESCRIPTION = """\
Rank the explainability vectors of a sweep's store for a new target: by the similarity of its prediction-only task vector to those of the
sources, with the relation that the sweep itself shows, how strong it is, and each source's scores on the sweep's own targets.

  python -m sweep.run recommend --target mine.pt --base ViT-B-32:openai
      your fine-tuned checkpoint: seconds
  python -m sweep.run recommend --target my_pictures/
      labelled pictures (a directory per class, or Parquet): a classifier is fine-tuned on them first, as the sweep's sources were
  python -m sweep.run recommend --target mine.pt --validation my_pictures/ --calibrate photos/
      the best ranked are tried: lambda2, accuracy, and what hiding patches says of their maps

The paper finds the relation weak (r = -0.36), and so may yours be: what is measured on pictures says more than the rank.
"""


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "recommend",
        help="rank a store's vectors for a new target",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", required=True, metavar="PATH", help="a fine-tuned checkpoint, or labelled pictures")
    parser.add_argument("--store", default="sweep_store", help="where sweeps left their artifacts (default: sweep_store)")
    parser.add_argument("--base", default="miniature", help="what all were fine-tuned from: open_clip NAME:TAG or directory (miniature)")
    scores = [score.name for score in SCORES]
    parser.add_argument("--score", choices=scores, default="correlation", help="that the relation is fitted to (default: correlation)")
    parser.add_argument("--alpha", type=float, help="vectors of this alpha only")
    tried = parser.add_argument_group("trying the best ranked")
    tried.add_argument("--validation", metavar="PICTURES", help="labelled: lambda2 is the largest that keeps their accuracy")
    tried.add_argument("--calibrate", metavar="PICTURES", help="unlabelled: what hiding patches does to the model, against the maps")
    tried.add_argument("--class-names", nargs="+", metavar="NAME", help="with --calibrate alone: the classes, in the order of your labels")
    tried.add_argument("--templates", nargs="+", default=list(DEFAULT_TEMPLATES), metavar="TEMPLATE", help="prompts with one {} each")
    tried.add_argument("--most", type=int, default=4, help="vectors that are tried (default: 4)")
    tried.add_argument("--min-normalized-accuracy", type=float, default=0.95, help="share of the accuracy to keep (default: 0.95)")
    parser.add_argument("--write", metavar="FILE.safetensors", help="write the best vector to a file of its own, for `transfer`")
    parser.add_argument("--trust-base", action="store_true", help="do not ask whether the weights lie near enough to the base's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises ConfigError and its kin for bad input."""
    check_device(options.device)
    request = RecommendRequest(
        target=options.target,
        store=options.store,
        base=options.base,
        score=options.score,
        alpha=options.alpha,
        validation=options.validation,
        calibrate=options.calibrate,
        class_names=tuple(options.class_names) if options.class_names else None,
        templates=tuple(options.templates),
        most=options.most,
        write=options.write,
        bound=Bound(options.min_normalized_accuracy),
        trust_base=options.trust_base,
        device=options.device,
    )
    recommended = run_recommend(request)
    print(recommended.as_json() if options.json else recommended.text())
