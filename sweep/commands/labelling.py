"""Labels a whole data set: checks the request, computes what is missing of its graph, and exports shards and card as they come."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from core.base_models import BaseDescription, describe_base
from core.data.domains import LabelledPictures, read_pictures
from core.games.attribution_labels import LabelSettings, fast_precision
from core.shapley.estimators import find_estimator
from sweep.commands import label_card
from sweep.commands.label_export import LabelExport, skipped_of
from sweep.commands.options import Places, check_directory
from sweep.commands.session import Session
from sweep.engines import interruption
from sweep.engines.job import Work
from sweep.experiment.config import ConfigError, Device
from sweep.experiment.cost import Projection, project
from sweep.report.text import duration
from sweep.stages.base import BaseFacts, BaseModel
from sweep.stages.dataset import LabelGraph, ModelFacts, find_model, is_artifact
from sweep.stages.labels import LabelShard
from sweep.stages.learned import Games, Learned, check_learning
from sweep.stages.pictures import CorruptPicturesError
from sweep.store.artifacts import Store, artifact_key

_log = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True)
class LabelRequest:
    """What the label command is asked for. precision: None takes the fast one where it hardly moves the labels.

    calibration_pictures: that an estimator learns from (None: its own default); calibration_budget: evaluations of those with references.
    """

    data: str
    model: str
    out: str
    settings: LabelSettings
    split: str | None = None
    base: str | None = None
    templates: tuple[str, ...] | None = None
    precision: str | None = None
    device: Device = "cpu"
    batch_size: int | None = None
    shard_size: int = 256
    max_pictures: int | None = None
    max_corrupt_share: float = 0.01
    calibration_pictures: int | None = None
    calibration_budget: int = 512

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size", "max_pictures", "calibration_pictures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if not 0.0 <= self.max_corrupt_share < 1.0:
            raise ConfigError(f"max_corrupt_share must lie in [0, 1), not {self.max_corrupt_share}")


@dataclass(frozen=True)
class Prices:
    """For projections: GPU name, share of its peak, price an hour of one worker."""

    gpu: str = "H100"
    utilisation: float = 0.5
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        project(0, 0, 0.0, gpu=self.gpu, utilisation=self.utilisation, price_per_hour=self.price_per_hour)  # raises ConfigError


@dataclass(frozen=True)
class Checked:
    """A request whose data, model and settings were looked at. earlier: what --out says of labels of the same that it holds, if any."""

    request: LabelRequest
    pictures: LabelledPictures
    model: ModelFacts
    base: BaseDescription
    settings: LabelSettings
    out: LabelExport
    key: str
    earlier: Mapping[str, Any] | None

    def graph(self, base: BaseFacts, settings: LabelSettings | None = None) -> LabelGraph:
        """The stages, once the base is known. Raises ConfigError where the model is of another base."""
        self.model.check_base(base)
        request = self.request
        location = request.data if "://" in request.data else os.path.abspath(os.path.expanduser(request.data))
        return LabelGraph(
            location,
            self.pictures,
            self.model,
            base,
            settings or self.settings,
            request.device,
            request.shard_size,
            request.max_pictures,
            request.batch_size,
            request.calibration_pictures,
            request.calibration_budget,
        )


def check(request: LabelRequest) -> Checked:
    """Check data, model, settings and --out. Nothing is computed or written.

    Raises ValueError (of the part that found it) naming the fix.
    """
    if request.templates and is_artifact(request.model):
        raise ConfigError("--templates goes with an open_clip model: a fine-tuned one keeps the prompts it was trained with")
    pictures = read_pictures(request.data, split=request.split, templates=request.templates)
    model = find_model(request.model, request.base, pictures)
    base = describe_base(model.base_name)
    settings = replace(request.settings, precision=request.precision or fast_precision(request.device))  # type: ignore[arg-type]
    try:
        settings.check(base.num_patches)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    where, number = f"{pictures.name}/{pictures.split_name}", _limited(len(pictures.pictures), request.max_pictures)
    learning = check_learning(
        where, settings, base.num_patches, request.calibration_budget, number, request.calibration_pictures
    )
    _warn_of_few_evaluations(request, settings, base.num_patches, learning)
    identity = {
        "model": [base.identity, model.class_names, model.templates, model.stored.sha256 if model.stored else None],
        "data": pictures.fingerprint,
        "split": pictures.split_name,
        "settings": {k: v for k, v in asdict(settings).items() if k != "precision"} | {"precision": request.precision or "auto"},
        "shard_size": request.shard_size,
        "max_pictures": request.max_pictures,
        "calibration": [request.calibration_pictures, request.calibration_budget] if learning else None,
        "device": request.device,
    }
    key = artifact_key("labelled_data_set", LabelShard.version, identity, ())
    out = LabelExport(request.out)
    earlier = out.settings()
    if earlier is not None and earlier["key"] != key:
        raise ConfigError(f"--out {out} holds labels of other data, another model or other settings: give another directory")
    if out.files.is_local:
        check_directory("--out", Path(out.files.root))
    return Checked(request, pictures, model, base, settings, out, key, earlier)


def _limited(number: int, most: int | None) -> int:
    return number if most is None else min(number, most)


def _warn_of_few_evaluations(request: LabelRequest, settings: LabelSettings, num_patches: int, learning: Any) -> None:
    if learning is not None:
        number, trusted = request.calibration_budget, learning.trusted_reference_budget
        instead = "--calibration-budget: what is learned is judged by them"
    else:
        number, trusted = settings.budget, find_estimator(settings.estimator).trusted_budget(num_patches)
        instead = "or take --estimator surrogate or calibrated"
    if trusted is not None and number < trusted:
        _log.warning(
            "%d evaluations are few for %d patches: estimates are poor, their error bars too small; trust both from about %d on (%s)",
            number,
            num_patches,
            trusted,
            instead,
        )


def projection_of(graph: LabelGraph, prices: Prices) -> Projection:
    """What the labelling will take on the GPU that is named."""
    learned = graph.learned
    extra = learned.lesson.learning.num_evaluations([g.request for g in learned.games]) if learned else 0
    return project(
        graph.num_pictures,
        _num_evaluations(graph),
        graph.base.evaluation_flops(graph.settings.fill),
        graph.base.picture_flops,
        num_calibration_evaluations=extra,
        gpu=prices.gpu,
        utilisation=prices.utilisation,
        price_per_hour=prices.price_per_hour,
    )


def _num_evaluations(graph: LabelGraph) -> int:
    """Those that a picture takes: some estimators use a part of the budget only, and of few patches there are fewer coalitions."""
    settings = graph.settings
    return len(find_estimator(settings.estimator).draw(graph.base.num_patches, settings.budget).coalitions)


def describe(graph: LabelGraph, out: LabelExport, prices: Prices) -> str:
    """What would run, for people."""
    pictures, settings, number = graph.pictures, graph.settings, _num_evaluations(graph)
    used = f"{number} evaluations" if number == settings.budget else f"{number} of {settings.budget} evaluations"
    return (
        f"{pictures.name}/{pictures.split_name}: {graph.num_pictures:,} pictures of {len(pictures.class_names)} classes, "
        f"{graph.base.num_patches} patches each; {settings.estimator}, {used}, fill {settings.fill}, value {settings.value}; "
        f"{len(graph.shards)} shards to {out}\n{projection_of(graph, prices)}"
    )


def run_label(request: LabelRequest, prices: Prices, places: Places, say: Say = print) -> None:
    """Label a data set to its end, or continue. Finished shards stand; the settings of a directory do not change.

    Raises ConfigError and its kin for bad input, before any computation; CorruptPicturesError once too many pictures cannot be read.
    """
    began = time.monotonic()
    checked = check(request)
    out, earlier = checked.out, checked.earlier
    out.files.check_writable()
    if earlier is not None and out.has_card and not out.missing(earlier["shards"]):
        say("Every shard is there already: nothing to label.")
        return
    store = Store(places.store or out.store_url)
    store.check_writable()
    try:
        with interruption.remembered(), Session(store, places, request.device, prices.price_per_hour) as session:
            _label(checked, prices, session, say)
    except KeyboardInterrupt:
        say("\nStopped. Finished shards stay: the same command continues from here.")
        raise
    say(f"Labels: {out}   ({duration(time.monotonic() - began)})")


def _label(checked: Checked, prices: Prices, session: Session, say: Say) -> None:
    request, out, store = checked.request, checked.out, session.store
    base = BaseModel(checked.base)
    session.compute([base], _nothing)
    graph = checked.graph(base.load(store))
    say(describe(graph, out, prices))
    graph, chosen = _with_precision(checked, graph, session)
    say(chosen)
    out.begin(_settings(checked, graph, chosen))
    if graph.learned is not None:
        _learn(graph, graph.learned, session, prices, say)
    shards = graph.shards
    index_of = {shard.key: n for n, shard in enumerate(shards)}
    for index in out.missing(len(shards)):  # finished before, but not exported
        if store.exists(shards[index].key):
            out.write_shard(shards[index], index, len(shards), store)
    allowed = request.max_corrupt_share * graph.num_pictures
    there = store.existing(index_of)
    skipped = skipped_of([shard for shard in shards if shard.key in there], store)

    def on_done(work: Work) -> None:
        if isinstance(work, LabelShard):
            out.write_shard(work, index_of[work.key], len(shards), store)
            skipped.extend(work.skipped(store))
        if len(skipped) > allowed:
            named = "; ".join(f"{s['id']}: {s['reason']}" for s in skipped)
            raise CorruptPicturesError(
                f"{len(skipped)} of {graph.num_pictures} pictures cannot be read (allowed {request.max_corrupt_share:.1%}): "
                f"{named[:1000]}. Mend them, or allow more with --max-corrupt-share"
            )

    missing = [shard for shard in shards if shard.key not in there]
    session.compute(list(shards), on_done)
    _say_rate(missing, store, say)
    if skipped:
        say(f"{len(skipped)} pictures cannot be read and have no label, the first: {skipped[0]['id']} ({skipped[0]['reason']})")
    report = graph.learned.report(store) if graph.learned else None
    out.write_card(label_card.text(graph, store, chosen, skipped, report))


def _nothing(work: Work) -> None:
    pass


def _with_precision(checked: Checked, graph: LabelGraph, session: Session) -> tuple[LabelGraph, str]:
    """The graph in the precision that is asked for, or in the fast one where a trial says that it hardly moves the labels."""
    if checked.request.precision is not None:
        return graph, f"precision {checked.request.precision}, as asked"
    if graph.settings.precision == "float32":
        return graph, "precision float32: this device has no faster arithmetic that is known to do"
    trial = graph.precision_trial
    session.compute([trial], _nothing)
    settings, chosen = trial.choice(session.store)
    return checked.graph(graph.base, settings), chosen


def _learn(graph: LabelGraph, learned: Learned, session: Session, prices: Prices, say: Say) -> None:
    store = session.store
    if not store.exists(learned.key):
        missing = [games for games in learned.games if not store.exists(games.key)]
        if missing:
            number = sum(len(games.request.indices) for games in missing)
            say(f"Evaluating {number:,} pictures that the {graph.settings.estimator} estimator learns from")
        session.compute([learned], _nothing)
        _say_rate(missing, store, say)
    report = learned.report(store)
    say(
        f"Learned, on {report.num_held_out} held-out pictures: relative error {report.relative_error:.3f}, bias {report.bias:.3f}, "
        f"spread of errors over error bars {report.z_spread:.2f} (more in the card)"
    )


def _say_rate(done: list[LabelShard] | list[Games], store: Store, say: Say) -> None:
    """What was evaluated by this run, and how much of the workers' time was not the model's."""
    metas = [work.artifact(store).manifest["meta"] for work in done]
    evaluations, seconds = sum(m["evaluations"] for m in metas), sum(m["seconds"] for m in metas)
    if evaluations:
        share = 1.0 - sum(m["evaluation_seconds"] for m in metas) / max(seconds, 1e-9)
        say(f"{evaluations:,} evaluations; {share:.1%} of the workers' time was outside the model")


def _settings(checked: Checked, graph: LabelGraph, precision_choice: str) -> dict[str, Any]:
    return {
        "key": checked.key,
        "settings": asdict(graph.settings),
        "role": graph.role,
        "precision_choice": precision_choice,
        "model": {"name": graph.classifier.name, "fingerprint": graph.classifier.fingerprint, "base": graph.base.fingerprint},
        "data": {"source": graph.pictures.source, "split": graph.pictures.split_name, "fingerprint": graph.pictures.fingerprint},
        "class_names": list(graph.model.class_names),
        "templates": list(graph.model.templates),
        "num_pictures": graph.num_pictures,
        "shards": len(graph.shards),
    }

