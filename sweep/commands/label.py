"""`python -m sweep.run label`: Shapley labels of a whole data set, with error bars. Options to request."""

from __future__ import annotations

import argparse
from typing import Any

from core.games.attribution_labels import LabelSettings
from core.shapley.estimators import ESTIMATORS
from sweep.commands.labelling import LabelRequest, Prices, check, describe, run_label
from sweep.commands.options import HelpWithDefaults, add_places, places_from
from sweep.experiment.config import ConfigError
from sweep.experiment.cost import ASSUMED_UTILISATION, GPUS
from sweep.stages.base import BaseModel


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    label = commands.add_parser(
        "label",
        help="Shapley labels of a whole data set, with error bars",
        formatter_class=HelpWithDefaults,
    )
    what = label.add_argument_group("what to label")
    what.add_argument("--data", required=True, help="directory, Parquet file or hf://datasets/... URL, as a domain of a sweep")
    what.add_argument("--split", help="split of the data (default: train, or the only one)")
    what.add_argument("--model", required=True, help="open_clip NAME:TAG or directory, or a sweep's model STORE/artifacts/XX/KEY")
    what.add_argument("--base", help="base of a fine-tuned model (default: miniature)")
    what.add_argument("--templates", nargs="+", help="prompt templates with one {} each")
    what.add_argument("--out", required=True, help="directory or fsspec URL of the labels")
    what.add_argument("--max-pictures", type=int, help="label the first pictures only")
    what.add_argument("--max-corrupt-share", type=float, default=0.01, help="share of unreadable pictures that is tolerated")

    how = label.add_argument_group("estimates")
    how.add_argument("--budget", type=int, default=512, help="evaluations a picture, besides the empty and the full one")
    fewest = "surrogate takes the fewest evaluations where pictures are many"
    how.add_argument("--estimator", choices=tuple(ESTIMATORS), default="kernel_shap", help=fewest)
    how.add_argument("--fill", choices=("mean", "drop"), default="mean", help="what stands for a masked patch: mean colour, or no token")
    how.add_argument("--value", choices=("logit", "log_odds", "probability"), default="logit", help="the game's value")
    how.add_argument("--l1-reg", default="none", help="none, num_features(K), aic or bic: the shap library's selection of patches")
    how.add_argument("--pool-size", type=int, default=16, help="coalition designs in the pool")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument(
        "--adaptive", type=float, metavar="ERROR", help="stop a picture early at this estimated relative error (standard error / label)"
    )
    how.add_argument(
        "--calibration-pictures", type=int, help="pictures that calibrated (default: 160) or surrogate (default: 8192) learns from"
    )
    how.add_argument("--calibration-budget", type=int, default=512, help="evaluations of each picture with a reference")

    speed = label.add_argument_group("speed")
    speed.add_argument("--batch-size", default="auto", help="coalitions evaluated at once: auto finds it by trial")
    speed.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: the fast one where a trial says it may be"
    )
    speed.add_argument("--shard-size", type=int, default=256, help="pictures a file")

    cost = label.add_argument_group("cost")
    cost.add_argument("--gpu", choices=sorted(GPUS), default="H100", help="GPU of the projection")
    cost.add_argument("--utilisation", type=float, default=ASSUMED_UTILISATION, help="share of its bfloat16 peak")
    cost.add_argument("--price-per-hour", type=float, help="of one worker; shown as cost")
    add_places(label, None, "directory or URL of the artifacts that the labels come from (default: store/ in --out)", tracking=False)
    label.set_defaults(device="cpu")


def prices_of(options: argparse.Namespace) -> Prices:
    return Prices(options.gpu, options.utilisation, options.price_per_hour)


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises ConfigError and its kin for bad input."""
    request, prices, places = request_of(options), prices_of(options), places_from(options)
    if options.dry_run:
        checked = check(request)
        graph = checked.graph(BaseModel(checked.base).look_at())
        print(describe(graph, checked.out, prices))
        return
    run_label(request, prices, places)


def request_of(options: argparse.Namespace) -> LabelRequest:
    """Raises ConfigError for options that do not go together."""
    try:
        settings = LabelSettings(
            budget=options.budget,
            pool_size=options.pool_size,
            value=options.value,
            seed=options.seed,
            estimator=options.estimator,
            fill=options.fill,
            l1_reg=options.l1_reg,
            target_error=options.adaptive,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return LabelRequest(
        data=options.data,
        model=options.model,
        out=options.out,
        settings=settings,
        split=options.split,
        base=options.base,
        templates=tuple(options.templates) if options.templates else None,
        precision=None if options.precision == "auto" else options.precision,
        device=options.device,
        batch_size=_batch_size(options.batch_size),
        shard_size=options.shard_size,
        max_pictures=options.max_pictures,
        max_corrupt_share=options.max_corrupt_share,
        calibration_pictures=options.calibration_pictures,
        calibration_budget=options.calibration_budget,
    )


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--batch-size is auto or a number, not {text!r}")
    return int(text)
