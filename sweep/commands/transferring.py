"""Adds an explainability vector to a user's checkpoint and writes the model that comes of it. In this process: it takes seconds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.attribution_head import AttributionHead, HeadKind
from core.base_models import hub_repository
from core.checkpoint_formats import FineTunedTower, read_image_tower
from core.data.domains import DEFAULT_TEMPLATES, LabelledPictures, PictureError, check_templates, decode_picture, read_pictures
from core.data.loose_pictures import find_pictures, read_loose_pictures
from core.games.lambda2 import RULE_MEANINGS, Bound, Calibration, Choice, Lambda2Search, ValidationPictures
from core.map_scale import SMALLEST_SCALE
from core.model import Base, Preprocessing, SelfExplainingClassifier, load_base, prompt_class_names
from core.model_directory import CARD, check_new, write_model
from core.transfer import TransferredModel
from sweep.commands.vector_source import FoundVector, found_vector
from sweep.experiment.config import ConfigError, Device
from sweep.report import model_card
from sweep.store.manifest import sha256_of

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
AUTO_LAMBDAS = tuple(round(0.1 * i, 10) for i in range(21))
LIBRARIES = ("torch", "open_clip_torch", "safetensors")


@dataclass(frozen=True)
class TransferRequest:
    """What the transfer command is asked for. lambda2: None chooses it. class_names: None takes the validation pictures'.

    max_calibration, max_validation: pictures that are used of those that are there, spread over them.
    """

    checkpoint: str
    vector: str
    out: str
    base: str = "miniature"
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    lambda2: float | None = None
    lambdas: tuple[float, ...] = AUTO_LAMBDAS
    bound: Bound = Bound()
    calibrate: str | None = None
    validation: str | None = None
    max_calibration: int = 64
    max_validation: int = 2000
    head: HeadKind = "efficiency"
    trust_base: bool = False
    device: Device = "cpu"
    store: str | None = None
    tracking_uri: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.lambda2 is None and self.calibrate is None and self.validation is None:
            raise ConfigError(
                "--lambda2 auto chooses by pictures: give labelled ones with --validation (best), unlabelled ones with --calibrate, or a "
                "number (1 adds the vector as it is)"
            )
        if self.class_names is None and self.validation is None:
            raise ConfigError("name the classes: --classes FILE with a name a line, or --class-names A B, in the order of your labels")
        if self.lambda2 is not None and not np.isfinite(self.lambda2):
            raise ConfigError(f"--lambda2 is auto or a finite number, not {self.lambda2}")
        if min(self.max_calibration, self.max_validation) < 1:
            raise ConfigError("--max-calibration and --max-validation must be at least 1")


@dataclass(frozen=True, eq=False)
class Used:
    """Pictures of one purpose: pixels uint8 [N, 3, S, S]; class_ids: int64 [N] where they are labelled; skipped: those that are damaged."""

    source: str
    pixels: torch.Tensor
    class_ids: np.ndarray | None
    skipped: int

    @property
    def described(self) -> dict[str, Any]:
        source = self.source if "://" in self.source else Path(self.source).name  # the model is meant to be given away
        return {"source": source, "num_pictures": len(self.pixels), "num_skipped": self.skipped}


def run_transfer(request: TransferRequest, say: Say = print) -> Choice:
    """Write the transferred model to `out`. Raises ConfigError and its kin, naming the fix, before anything is written."""
    out = Path(request.out).expanduser()
    check_new(out)
    labelled = read_pictures(request.validation, split=_split(request.validation)) if request.validation else None
    class_names = prompt_class_names(request.class_names or (labelled.class_names if labelled else ()))
    _check_class_names(class_names)
    check_templates(request.templates)
    if request.calibrate and "://" not in request.calibrate and not request.calibrate.endswith(".parquet"):
        find_pictures(request.calibrate)
    base = load_base(request.base)
    tower = read_image_tower(Path(request.checkpoint).expanduser(), base, trust_base=request.trust_base)
    say(f"{request.checkpoint}: {tower.layout}, fine-tuned from {base.name} (relative distance of its weights {tower.distance:.3f})")
    if tower.has_other_text_tower:
        _log.warning("the text tower of %s was trained too: the class embeddings are the base's, check the accuracy", request.checkpoint)
    with found_vector(request.vector, base, request.store, request.tracking_uri) as found:
        head = base.head(class_names, request.templates, device=request.device)
        # The base's own tower is overwritten: two more copies of it would not fit in the memory that is promised.
        classifier = SelfExplainingClassifier(base.visual, head, base.logit_scale, AttributionHead(request.head)).to(request.device).eval()
        model = TransferredModel(classifier, tower.weights, found.vector)
        validation = _labelled_pixels(labelled, class_names, base.preprocessing, request.max_validation) if labelled else None
        calibration_pictures = _calibration_pixels(request, base.preprocessing, validation)
        calibration = None
        if calibration_pictures is not None:
            calibration = Calibration.play(model.set(0.0), calibration_pictures.pixels, base.preprocessing)
        pictures = ValidationPictures(validation.pixels, validation.class_ids) if validation and validation.class_ids is not None else None
        search = Lambda2Search(model, base.preprocessing, pictures, calibration, request.bound)
        choice = search.choose(request.lambdas) if request.lambda2 is None else search.given(request.lambda2)
        say(told(choice, request))
        model.set(choice.point.lambda2)
        scale = choice.point.scale or 1.0
        classifier.attribution_head = replace(classifier.attribution_head, scale=scale)
        provenance = _provenance(request, base, tower, found, choice, scale, validation, calibration_pictures)
        zero = calibration.zero_infidelity if calibration else None
        provenance |= {"zero_infidelity": zero, "license": request.license}
        write_model(out, classifier, base, class_names, request.templates, provenance)
    (out / CARD).write_text(model_card.text(out.name, provenance, class_names, zero, request.license), encoding="utf-8")
    say(f"Model: {out}\nSee it explain: python -m sweep.run explain --model {out} --image PICTURES")
    return choice


def told(choice: Choice, request: TransferRequest) -> str:
    """What was chosen and why, for people."""
    point = choice.point
    lines = [f"lambda2 = {point.lambda2:g}: {RULE_MEANINGS[choice.rule]}"]
    if choice.rule != "given" and point.lambda2 == 0.0:
        lines.append("WARNING: nothing above 0 is within the bound, and this is the checkpoint itself: give more pictures, or a lambda2")
    if choice.rule == "accuracy_bound" and point is choice.points[-1]:
        lines.append("the whole grid is within the bound: a wider one may go further (--lambdas)")
    if point.accuracy is not None:
        before, lower = choice.points[0].accuracy, point.normalized_accuracy_lower
        limit = f"at least {lower:.3f} ({request.bound.confidence:.0%})" if lower is not None else ""
        bound = "" if lower is None else f", normalised {point.normalized_accuracy:.3f}, {limit}"
        lines.append(f"validation accuracy {point.accuracy:.3f} (the checkpoint's {before:.3f}{bound})")
    if point.infidelity is not None:
        lines.append(
            f"infidelity {point.infidelity:.4f} at the scale {point.scale:.3g} (the checkpoint's own maps "
            f"{choice.points[0].infidelity:.4f}); {point.agreement:.1%} of predictions stay"
        )
    if point.scale is not None and point.scale <= SMALLEST_SCALE:
        lines.append("WARNING: the maps do not follow what hiding patches does to this model: their order means little; try another vector")
    if point.scale is None:
        lines.append("the maps' scale is the vector's own: --calibrate PICTURES (no labels needed) fits it to this model")
    return "\n".join(lines)


def _split(place: str | None) -> str | None:
    """The split of labelled pictures that no training has seen: that of the name validation or test, where there are splits."""
    path = Path(place or "").expanduser()
    return next((split for split in ("validation", "test") if (path / split).is_dir() or list(path.glob(f"{split}*.parquet"))), None)


def _check_class_names(names: Sequence[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or doubled or not all(name.strip() for name in names):
        raise ConfigError(f"class names must be two or more, all different and none empty{f' (twice: {doubled[:3]})' if doubled else ''}")


def _labelled_pixels(
    labelled: LabelledPictures, class_names: Sequence[str], preprocessing: Preprocessing, most: int
) -> Used:
    """Raises ConfigError where the pictures' classes are not among the names."""
    names = prompt_class_names(labelled.class_names)
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise ConfigError(
            f"--validation {labelled.source} has {len(unknown)} classes that are not named ({', '.join(unknown[:3])}): its directories and "
            "--classes must name the same classes"
        )
    ids = np.array([list(class_names).index(name) for name in names])[labelled.pictures.class_ids]
    pixels, kept, skipped = [], [], 0
    for index in _spread(len(labelled.pictures), most):
        try:
            pixels.append(preprocessing.pixels(decode_picture(labelled.pictures.read_bytes(index))))
            kept.append(index)
        except PictureError as error:
            _log.warning("%s: %s is skipped: %s", labelled.source, labelled.pictures.ids[index], error)
            skipped += 1
    return Used(labelled.source, _stacked(pixels, labelled.source), ids[kept], skipped)


def _calibration_pixels(request: TransferRequest, preprocessing: Preprocessing, validation: Used | None) -> Used | None:
    """The unlabelled pictures; without them the labelled ones, whose labels it does not read."""
    if request.calibrate is None:
        if validation is None:
            return None
        return Used(validation.source, validation.pixels[_spread(len(validation.pixels), request.max_calibration)], None, 0)
    if "://" in request.calibrate or request.calibrate.endswith(".parquet") or list(Path(request.calibrate).glob("*.parquet")):
        labelled = read_pictures(request.calibrate, split=_split(request.calibrate))
        names = prompt_class_names(labelled.class_names)
        return _labelled_pixels(labelled, names, preprocessing, request.max_calibration)
    paths = find_pictures(request.calibrate)
    chosen = tuple(paths[i] for i in _spread(len(paths), request.max_calibration))
    pixels, skipped = [], 0
    for loose in read_loose_pictures(request.calibrate, chosen):
        if isinstance(loose.picture, PictureError):
            _log.warning("%s: %s is skipped: %s", request.calibrate, loose.name, loose.picture)
            skipped += 1
        else:
            pixels.append(preprocessing.pixels(loose.picture))
    return Used(request.calibrate, _stacked(pixels, request.calibrate), None, skipped)


def _spread(number: int, most: int) -> list[int]:
    """At most so many of the first `number` integers, evenly spread: pictures of one class often stand together."""
    return list(range(number)) if number <= most else np.linspace(0, number - 1, most).round().astype(int).tolist()


def _stacked(pixels: list[np.ndarray], source: str) -> torch.Tensor:
    if not pixels:
        raise ConfigError(f"{source} holds no picture that can be read: give others")
    return torch.from_numpy(np.stack(pixels))


def _provenance(
    request: TransferRequest,
    base: Base,
    tower: FineTunedTower,
    found: FoundVector,
    choice: Choice,
    scale: float,
    validation: Used | None,
    calibration: Used | None,
) -> dict[str, Any]:
    """Everything that made the model. Files are named without their directories: the model is meant to be given away."""
    return {
        "format": 1,
        "base": {"name": base.name, "fingerprint": base.fingerprint, "hub_repository": hub_repository(base.name)},
        "checkpoint": {
            "name": Path(request.checkpoint).name,
            "layout": tower.layout,
            "sha256": {file.name: sha256_of(file) for file in tower.files},
            "relative_distance": tower.distance,
        },
        "vector": {"source": found.source, "sha256": found.sha256, **found.metadata},
        "merge": {"rule": "addition", "lambda1": 1.0, "lambda2": choice.point.lambda2},
        "choice": {
            "rule": choice.rule,
            "meaning": RULE_MEANINGS[choice.rule],
            "min_normalized_accuracy": request.bound.least,
            "confidence": request.bound.confidence,
            "chosen": asdict(choice.point),
            "points": [asdict(point) for point in choice.points],
        },
        "attribution_head": {"kind": request.head, "scale": scale},
        "validation": validation.described if validation else None,
        "calibration": calibration.described if calibration else None,
        "templates": list(request.templates),
        "versions": {name: version(name) for name in LIBRARIES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
