"""Adds an explainability vector to a user's checkpoint and writes the model that comes of it. In this process: it takes seconds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from core.attribution_head import AttributionHead, HeadKind
from core.base_models import hub_repository
from core.checkpoint_formats import FineTunedTower, base_tower, read_image_tower
from core.data.domains import DEFAULT_TEMPLATES, LabelledPictures, check_templates
from core.data.loose_pictures import find_pictures
from core.games.lambda2 import RULE_MEANINGS, Bound, Choice, Lambda2Search, Point
from core.low_rank import LowRankVector
from core.map_scale import SMALLEST_SCALE
from core.merging.addition import Addition
from core.merging.rule import MergeRule
from core.model import Base, SelfExplainingClassifier, load_base
from core.model_directory import CARD, check_new, write_model
from core.task_vectors import TaskVector, Weights
from core.transfer import TransferredModel
from sweep.commands.merge_target import OR_ADDITION, MergeTarget, check_measurable
from sweep.commands.options import check_directory
from sweep.commands.target_pictures import (
    MAX_VALIDATION,
    OwnersPictures,
    read_validation,
)
from sweep.commands.vector_source import FoundVector, found_vector
from sweep.experiment.config import ConfigError, Device
from sweep.report import model_card
from sweep.store.manifest import sha256_of

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
AUTO_LAMBDAS = tuple(round(0.1 * i, 10) for i in range(21))
VECTOR = "vector.safetensors"
"""Beside the model, where a vector of low rank was made."""
LIBRARIES = ("torch", "open_clip_torch", "safetensors")


@dataclass(frozen=True)
class TransferRequest:
    """What the transfer command is asked for. lambda2: None chooses it. class_names: None takes the validation pictures'.

    merge: how the vector is put in; what it needs of the target is measured on the pictures that are given.
    rank: of the vector that is added, and written beside the model; None: the vector as it is.
    max_calibration, max_validation: pictures that are used of those that are there, spread over them; max_calibration None: as many as
    the rule asks for (`OwnersPictures.read`).
    """

    checkpoint: str
    vector: str
    out: str
    base: str = "miniature"
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    merge: MergeRule = Addition()
    lambda2: float | None = None
    lambdas: tuple[float, ...] = AUTO_LAMBDAS
    bound: Bound = Bound()
    calibrate: str | None = None
    validation: str | None = None
    max_calibration: int | None = None
    max_validation: int = MAX_VALIDATION
    head: HeadKind = "efficiency"
    trust_base: bool = False
    rank: int | None = None
    device: Device = "cpu"
    store: str | None = None
    tracking_uri: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.class_names is None and self.validation is None:
            raise ConfigError("name the classes: --classes FILE with a name a line, or --class-names A B, in the order of your labels")
        if self.lambda2 is not None and not np.isfinite(self.lambda2):
            raise ConfigError(f"--lambda2 is auto or a finite number, not {self.lambda2}")
        if self.max_validation < 1 or (self.max_calibration is not None and self.max_calibration < 1):
            raise ConfigError("--max-calibration and --max-validation must be at least 1")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"--rank must be at least 1, not {self.rank}")
        check_measurable(self.merge, self.validation is not None, (self.validation or self.calibrate) is not None)


def run_transfer(request: TransferRequest, say: Say = print) -> Choice:
    """Write the transferred model to `out`. Raises ConfigError and its kin, naming the fix, before anything is written."""
    out = Path(request.out).expanduser()
    check_directory("--out", out)
    check_new(out)
    labelled, class_names = read_validation(request.validation, request.class_names)
    check_templates(request.templates)
    if request.calibrate and "://" not in request.calibrate and not request.calibrate.endswith(".parquet"):
        find_pictures(request.calibrate)
    base = load_base(request.base)
    if request.checkpoint == request.base:
        tower = base_tower(base)
        say(f"{request.checkpoint}: {tower.layout}")
    else:
        tower = read_image_tower(Path(request.checkpoint).expanduser(), base, trust_base=request.trust_base)
        say(f"{request.checkpoint}: {tower.layout}, fine-tuned from {base.name} (relative distance of its weights {tower.distance:.3f})")
    if tower.has_other_text_tower:
        _log.warning("the text tower of %s was trained too: the class embeddings are the base's, check the accuracy", request.checkpoint)
    with ThreadPoolExecutor(1) as beside:
        checksums = {file.name: beside.submit(sha256_of, file) for file in tower.files}
        merged = _merged(request, base, tower, checksums, labelled, class_names, say)
    write_model(out, merged.classifier, base, class_names, request.templates, merged.provenance)
    if merged.low_rank is not None:
        merged.low_rank.save(out / VECTOR, merged.vector_metadata)
        (out / VECTOR).chmod(0o644)  # safetensors writes files that only their owner can read
    card = model_card.text(out.name, merged.provenance, class_names, merged.zero_infidelity, request.license)
    (out / CARD).write_text(card, encoding="utf-8")
    say(f"Model: {out}\nSee it explain: python -m sweep.run explain --model {out} --image PICTURES")
    return merged.choice


@dataclass(frozen=True, eq=False)
class _Merged:
    """The transferred classifier, and what is to be written beside it. zero_infidelity: of maps of zeros on the calibration pictures."""

    classifier: SelfExplainingClassifier
    choice: Choice
    provenance: dict[str, Any]
    zero_infidelity: float | None
    low_rank: LowRankVector | None
    vector_metadata: Mapping[str, str]


def _merged(
    request: TransferRequest,
    base: Base,
    tower: FineTunedTower,
    checksums: Mapping[str, Future[str]],
    labelled: LabelledPictures | None,
    class_names: Sequence[str],
    say: Say,
) -> _Merged:
    """The merge at the chosen lambda2. The vector is no longer held afterwards: what is written takes its room."""
    with found_vector(request.vector, base, request.store, request.tracking_uri) as found:
        attribution_fisher = _brought(request, found)
        is_edited = request.merge != Addition()
        target_task = TaskVector.between(tower.weights, dict(base.visual.state_dict()), base.fingerprint) if is_edited else None
        head = base.head(class_names, request.templates, device=request.device)
        # The base's own tower is overwritten: two more copies of it would not fit in the memory that is promised.
        classifier = SelfExplainingClassifier(base.visual, head, base.logit_scale, AttributionHead(request.head)).to(request.device).eval()
        low_rank = LowRankVector.of(found.vector, request.rank) if request.rank else None
        pictures = OwnersPictures.read(
            labelled, class_names, request.calibrate, base, request.max_validation, request.max_calibration, [request.merge]
        )
        target = MergeTarget(classifier, tower.weights, target_task, pictures)
        added = target.edited(request.merge, low_rank.vector() if low_rank else found.vector, attribution_fisher)
        whole = target.edited(request.merge, found.vector, attribution_fisher) if low_rank else added
        merge = target.described(request.merge, found.source)
        del target, target_task, attribution_fisher  # frees what was measured
        model = TransferredModel(classifier, tower.weights, added)
        game = pictures.game(model)
        search = pictures.search(model, game, request.bound)
        choice = _choice(request, search, found)
        _check_finite(model.set(choice.point.lambda2), choice.point.lambda2)
        say(told(choice, request))
        if choice.rule == "infidelity" and found.recommended_rule is not None:
            say(f"the vector's file recommends a lambda2 for --merge {found.recommended_rule}, which this is not")
        cost = None
        if low_rank is not None:
            with_whole = pictures.search(TransferredModel(classifier, tower.weights, whole), game, request.bound)
            cost = _cost_of_rank(low_rank, found.vector, choice.point, with_whole.given(choice.point.lambda2).point)
            say(cost["told"])
        model.set(choice.point.lambda2)
        scale = choice.point.scale or 1.0
        classifier.attribution_head = replace(classifier.attribution_head, scale=scale)
        provenance = _provenance(request, base, tower, checksums, found, merge, choice, scale, pictures)
        if cost is not None:
            provenance["vector"] |= {"rank": request.rank, "cost_of_rank": cost}
        zero = game.zero_infidelity if game else None
        provenance |= {"zero_infidelity": zero, "license": request.license}
        return _Merged(classifier, choice, provenance, zero, low_rank, dict(found.metadata))


def _choice(request: TransferRequest, search: Lambda2Search, found: FoundVector) -> Choice:
    """By labelled pictures; without them what the vector's file says, which serves better than infidelity on unlabelled ones (README)."""
    if request.lambda2 is not None:
        return search.given(request.lambda2)
    if request.validation is None and (recommended := found.lambda2(request.merge)) is not None:
        return replace(search.given(recommended), rule="vector")
    if request.validation is None and request.calibrate is None:
        raise ConfigError(
            f"--lambda2 auto chooses by pictures, and the vector's file names {_not_recommended(found)}: give labelled ones with "
            "--validation (best), unlabelled ones with --calibrate, or a number (1 adds the vector as it is)"
        )
    return search.choose(request.lambdas)


def _check_finite(classifier: SelfExplainingClassifier, lambda2: float) -> None:
    """Raise ConfigError where weights are no finite numbers, or too large for the model to give some."""
    classifier.fix_empty()
    assert classifier.empty is not None
    if not all(bool(values.isfinite().all()) for values in (*classifier.visual.state_dict().values(), classifier.empty)):
        raise ConfigError(
            f"at lambda2 = {lambda2:g} the model gives no finite numbers: take a smaller --lambda2; if 0 does not help, the checkpoint or "
            "the vector is damaged"
        )


def _brought(request: TransferRequest, found: FoundVector) -> Weights | None:
    """What the rule needs of the source, which comes with the vector. Raises ConfigError, with the fix, where it did not."""
    if "attribution_fisher" not in request.merge.needs:
        return None
    brought = found.attribution_fisher()
    if brought is None:
        raise ConfigError(
            f"--merge {request.merge.text} needs attribution_fisher of the vector's source, which {request.vector} does not bring: give "
            "--vector STORE/artifacts/XX/KEY of a store whose sweep merged by such a rule, or a file that `recommend --write` made from "
            f"it, {OR_ADDITION}"
        )
    return brought


def _not_recommended(found: FoundVector) -> str:
    """What a vector's file recommends, where it is of no use for the rule that was asked for."""
    return "none" if found.recommended_rule is None else f"one for --merge {found.recommended_rule} alone"


def _cost_of_rank(low_rank: LowRankVector, vector: TaskVector, point: Point, whole: Point) -> dict[str, Any]:
    """What a vector of low rank loses at the chosen lambda2, measured where there are pictures."""
    share = low_rank.num_numbers / sum(weight.numel() for weight in vector.weights.values())
    lines = [f"rank {low_rank.rank}: {share:.1%} of the vector's numbers, {low_rank.relative_error(vector):.1%} of its norm is missing"]
    for name in ("accuracy", "infidelity", "agreement"):
        ours, theirs = getattr(point, name), getattr(whole, name)
        if ours is not None and theirs is not None:
            lines.append(f"{name} {ours:.4f} instead of {theirs:.4f} with the whole vector")
    return {
        "relative_error": low_rank.relative_error(vector),
        "share_of_numbers": share,
        "with_whole_vector": asdict(whole),
        "told": "; ".join(lines),
    }


def told(choice: Choice, request: TransferRequest) -> str:
    """What was chosen and why, for people."""
    point = choice.point
    lines = [f"lambda2 = {point.lambda2:g}, merge rule {request.merge.text}: {RULE_MEANINGS[choice.rule]}"]
    if choice.rule == "vector" and point.agreement is not None and point.agreement < request.bound.least:
        lines.append(f"WARNING: only {point.agreement:.1%} of the checkpoint's predictions stay: --validation, or a smaller --lambda2")
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


def _provenance(
    request: TransferRequest,
    base: Base,
    tower: FineTunedTower,
    checksums: Mapping[str, Future[str]],
    found: FoundVector,
    merge: Mapping[str, Any],
    choice: Choice,
    scale: float,
    pictures: OwnersPictures,
) -> dict[str, Any]:
    """Everything that made the model. Files are named without their directories: the model is meant to be given away."""
    return {
        "format": 1,
        "base": {"name": base.name, "fingerprint": base.fingerprint, "hub_repository": hub_repository(base.name)},
        "checkpoint": {
            "name": Path(request.checkpoint).name,
            "layout": tower.layout,
            "sha256": {name: checksum.result() for name, checksum in checksums.items()},
            "relative_distance": tower.distance,
        },
        "vector": {"source": found.source, "sha256": found.sha256, **found.metadata},
        "merge": {**merge, "lambda1": 1.0, "lambda2": choice.point.lambda2},
        "choice": {
            "rule": choice.rule,
            "meaning": RULE_MEANINGS[choice.rule],
            "min_normalized_accuracy": request.bound.least,
            "confidence": request.bound.confidence,
            "chosen": asdict(choice.point),
            "points": [asdict(point) for point in choice.points],
        },
        "attribution_head": {"kind": request.head, "scale": scale},
        "validation": pictures.validation.described if pictures.validation else None,
        "calibration": pictures.calibration.described if pictures.calibration else None,
        "templates": list(request.templates),
        "versions": {name: version(name) for name in LIBRARIES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
