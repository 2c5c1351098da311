"""`python -m sweep.run label`: Shapley labels of a whole data set with error bars, resumable, on one machine or a cluster."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from core.data.domains import read_pictures
from core.games.attribution_labels import LabelSettings, fast_precision, precision_shift
from core.games.flops import flops_per_evaluation, flops_per_picture
from core.model import Base
from core.shapley.calibration import HELD_OUT, CalibrationReport
from core.shapley.estimators import LEARNED, make_design
from core.shapley.feature_selection import parse_l1_reg
from core.shapley.kernel_shap import sample_coalitions
from core.shapley.residual_posterior import draw_coalitions
from core.shapley.surrogate import default_epochs
from sweep.commands import label_card
from sweep.commands.label_directory import LabelDirectory
from sweep.engines import cluster, interruption
from sweep.engines.progress import Progress, duration
from sweep.engines.shards import LabelMeter, label_shards
from sweep.experiment.config import ConfigError, Device
from sweep.experiment.cost import Projection, project
from sweep.stages.calibration_job import CalibrationJob
from sweep.stages.computations import CorruptPicturesError
from sweep.stages.dataset_labels import DatasetLabels, collected, decode
from sweep.stages.label_files import read_provenance
from sweep.stages.label_model import find_model, is_artifact, to_device
from sweep.stages.surrogate_job import NUM_REFERENCES, GamesShard, SurrogateJob
from sweep.store.artifacts import artifact_key

_log = logging.getLogger(__name__)

VERSION = 1
TRUSTED_BUDGET = 4
"""Times the number of patches: evaluations from which on a regression's error bars cover (see the tests)."""
CALIBRATION_PICTURES = {"calibrated": 160, "surrogate": 8192}
"""Pictures that an estimator learns from. The surrogate's are labelled with the very values it learns from: they cost it nothing."""
MAX_PRECISION_SHIFT = 0.1
"""Low precision is used where it moves labels by at most this share of their standard error."""


@dataclass(frozen=True)
class LabelRequest:
    """What the label command is asked for. precision: None takes the fast one where it hardly moves the labels.

    calibration_pictures: that the calibrated or the surrogate estimator learns from (None: `CALIBRATION_PICTURES`); calibration_budget:
    evaluations of those with references.
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


    @property
    def num_calibration_pictures(self) -> int:
        """Pictures the estimator learns from; 0 where it learns nothing."""
        estimator = self.settings.estimator
        return (self.calibration_pictures or CALIBRATION_PICTURES[estimator]) if estimator in LEARNED else 0


@dataclass(frozen=True)
class Prices:
    """For projections: GPU name, share of its peak, price an hour of one worker."""

    gpu: str = "H100"
    utilisation: float = 0.5
    price_per_hour: float | None = None


@dataclass(frozen=True)
class LabelPlaces:
    """Where labelling runs. None: this machine's default."""

    address: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float = 1.0
    threads_per_worker: int | None = None


def make_job(request: LabelRequest) -> tuple[DatasetLabels, Base]:
    """Check data, model and settings, and give the job. Nothing is computed or written.

    Raises ValueError (of the part that found it) naming the fix.
    """
    if request.templates and is_artifact(request.model):
        raise ConfigError("--templates goes with an open_clip model: a fine-tuned one keeps the prompts it was trained with")
    pictures = read_pictures(request.data, split=request.split, templates=request.templates)
    model, base = find_model(request.model, request.base, pictures.class_names, pictures.templates)
    settings = request.settings
    try:
        if settings.estimator in LEARNED:
            parse_l1_reg(settings.l1_reg)
            make_design("size_adjusted", base.num_patches, request.calibration_budget)
            if settings.l1_reg != "none":
                raise ConfigError(f"l1_reg selects in a regression: not with the estimator {settings.estimator}; leave it out")
            if settings.estimator == "calibrated":
                sample_coalitions(base.num_patches, settings.budget, must_determine=False)
            else:
                draw_coalitions(base.num_patches, settings.budget)
        else:
            make_design(settings.estimator, base.num_patches, settings.budget, l1_reg=settings.l1_reg)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _warn_of_few_evaluations(request, base.num_patches)
    precision = request.precision or fast_precision(request.device)
    settings = replace(settings, precision=precision)  # type: ignore[arg-type]
    calibration = [request.num_calibration_pictures, request.calibration_budget] if settings.estimator in LEARNED else None
    identity = {
        "model": model.fingerprint,
        "data": pictures.fingerprint,
        "split": pictures.split_name,
        "settings": {k: v for k, v in asdict(settings).items() if k != "precision"} | {"precision": request.precision or "auto"},
        "shard_size": request.shard_size,
        "max_pictures": request.max_pictures,
        "calibration": calibration,
        "device": request.device,
    }
    key = artifact_key("dataset_labels", VERSION, identity, ())
    out = LabelDirectory(request.out)
    job = DatasetLabels(
        pictures, model, settings, request.device, out, key, request.shard_size, request.max_pictures, request.batch_size
    )
    if settings.estimator == "surrogate":
        _surrogate_job(request, job, base).shards()  # too few pictures are found here
    return job, base


def _warn_of_few_evaluations(request: LabelRequest, num_patches: int) -> None:
    estimator, trusted = request.settings.estimator, TRUSTED_BUDGET * num_patches
    if estimator in ("kernel_shap", "leverage", "size_adjusted") and request.settings.budget < trusted:
        number, instead = request.settings.budget, "or take --estimator surrogate or calibrated"
    elif estimator in LEARNED and request.calibration_budget < trusted:
        number, instead = request.calibration_budget, "--calibration-budget: what is learned is judged by them"
    else:
        return
    _log.warning(
        "%d evaluations are few for %d patches: estimates are poor, their error bars too small; both can be trusted from about %d on (%s)",
        number,
        num_patches,
        trusted,
        instead,
    )


def projection_of(request: LabelRequest, job: DatasetLabels, base: Base, prices: Prices) -> Projection:
    """What the labelling will take on the GPU that is named."""
    calibration = 0
    if job.settings.estimator == "calibrated":
        number = min(request.num_calibration_pictures, job.num_pictures)
        calibration = number * (request.calibration_budget + job.settings.budget // HELD_OUT + 2)
    elif job.settings.estimator == "surrogate":
        calibration = NUM_REFERENCES * request.calibration_budget
    return project(
        job.num_pictures,
        job.settings.budget,
        flops_per_evaluation(base.visual, job.settings.fill),
        flops_per_picture(base.visual),
        num_calibration_evaluations=calibration,
        gpu=prices.gpu,
        utilisation=prices.utilisation,
        price_per_hour=prices.price_per_hour,
    )


def describe(request: LabelRequest, job: DatasetLabels, base: Base, prices: Prices) -> str:
    """What would run, for people."""
    pictures = job.pictures
    settings = job.settings
    return (
        f"{pictures.name}/{pictures.split_name}: {job.num_pictures:,} pictures of {len(pictures.class_names)} classes, "
        f"{base.num_patches} patches each; {settings.estimator}, {settings.budget} evaluations, fill {settings.fill}, value "
        f"{settings.value}; "
        f"{len(job.shards())} shards to {job.out}\n{projection_of(request, job, base, prices)}"
    )


def run_label(request: LabelRequest, prices: Prices, places: LabelPlaces, say: Callable[[str], None] = print) -> None:
    """Label a data set to its end, or continue. Finished shards stand; the settings of a directory do not change.

    Raises ConfigError and its kin for bad input, before any computation; CorruptPicturesError once too many pictures cannot be read.
    """
    began = time.monotonic()
    job, base = make_job(request)
    earlier = job.out.settings()
    if earlier is not None and earlier["key"] != job.key:
        raise ConfigError(f"--out {job.out} holds labels of other data, another model or other settings: give another directory")
    job.out.check_writable()
    say(describe(request, job, base, prices))
    if earlier is not None:
        job = replace(job, settings=LabelSettings(**earlier["settings"]))
    missing = job.missing()
    if earlier is not None and not missing and label_card.is_written(job.out):
        say("Every shard is there already: nothing to label.")
        return
    try:
        with interruption.remembered():
            _label(request, prices, places, job, base, earlier, say)
    except KeyboardInterrupt:
        say("\nStopped. Finished shards stay: the same command continues from here.")
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(f"no space is left at {job.out} or in the temporary directory: free some; finished shards stay") from error
        raise
    say(f"Labels: {job.out}   ({duration(time.monotonic() - began)})")


def _label(
    request: LabelRequest,
    prices: Prices,
    places: LabelPlaces,
    job: DatasetLabels,
    base: Base,
    earlier: dict[str, Any] | None,
    say: Callable[[str], None],
) -> None:
    report: CalibrationReport | None = None
    where = (places.address, request.device, places.num_workers, places.gpus_per_worker, places.threads_per_worker)
    with cluster.connected(*where) as workers:
        if earlier is None:
            job, measured = _with_precision(request, job, workers)
            say(measured)
            job.out.begin(_settings(job, measured))
        else:
            measured = earlier["precision_choice"]
        shards = job.missing()
        if job.settings.estimator == "calibrated":
            job, report = _calibrated(request, job, base, workers, say)
        elif job.settings.estimator == "surrogate":
            job, report = _with_surrogate(request, job, base, workers, say)
        price = None if prices.price_per_hour is None else prices.price_per_hour * workers.number
        meter = LabelMeter(sum(s.stop - s.start for s in shards), price)
        allowed = request.max_corrupt_share * job.num_pictures
        num_skipped = sum(len(p["skipped"]) for p in _provenances(job))

        def on_shard(shard_report: Any) -> None:
            meter.add(shard_report)
            if num_skipped + meter.num_skipped > allowed:
                named = "; ".join(f"{s['id']}: {s['reason']}" for p in _provenances(job) for s in p["skipped"])
                raise CorruptPicturesError(
                    f"{num_skipped + meter.num_skipped} of {job.num_pictures} pictures cannot be read (allowed "
                    f"{request.max_corrupt_share:.1%}): {named[:1000]}. Mend them, or allow more with --max-corrupt-share"
                )

        label_shards(job, shards, workers, on_shard)
    _say_rate(meter, say)
    skipped = [s for p in _provenances(job) for s in p["skipped"]]
    if skipped:
        say(f"{len(skipped)} pictures cannot be read and have no label, the first: {skipped[0]['id']} ({skipped[0]['reason']})")
    label_card.write(job, measured, skipped, report)
    job.out.remove_unfinished()


def _say_rate(meter: LabelMeter, say: Callable[[str], None]) -> None:
    if not meter.num_evaluations:
        return
    share = 1.0 - meter.evaluation_seconds / meter.worker_seconds
    rate = f", {meter.steady_rate:,.2f} pictures/s past start-up" if meter.steady_rate else ""
    say(f"{meter.num_evaluations:,} evaluations{rate}; {share:.1%} of the workers' time was outside the model")


def _settings(job: DatasetLabels, precision_choice: str) -> dict[str, Any]:
    return {
        "key": job.key,
        "settings": asdict(job.settings),
        "precision_choice": precision_choice,
        "model": {"name": job.model.checkpoint or job.model.base, "fingerprint": job.model.fingerprint},
        "data": {"source": job.pictures.source, "split": job.pictures.split_name, "fingerprint": job.pictures.fingerprint},
        "class_names": list(job.model.class_names),
        "templates": list(job.model.templates),
        "num_pictures": job.num_pictures,
        "shards": len(job.shards()),
    }


def _provenances(job: DatasetLabels) -> list[dict[str, Any]]:
    """The metadata of the shards that are there."""
    number = len(job.shards())
    found = []
    for index in sorted(job.out.finished(number)):
        with job.out.open(job.out.shard_name(index, number)) as file:
            found.append(read_provenance(file))
    return found


def _with_precision(request: LabelRequest, job: DatasetLabels, workers: cluster.Workers) -> tuple[DatasetLabels, str]:
    """The job in the precision that is asked for, or in the fast one where a measurement says that it hardly moves the labels."""
    if request.precision is not None:
        return job, f"precision {request.precision}, as asked"
    if job.settings.precision == "float32":
        return job, "precision float32: this device has no faster arithmetic that is known to do"
    shift = cluster.run_on_worker(_measured_shift, (job,), workers)
    if shift <= MAX_PRECISION_SHIFT:
        return job, f"precision {job.settings.precision}: it moves labels by {shift:.3f} of their standard error"
    slow = replace(job, settings=replace(job.settings, precision="float32"))
    return slow, f"precision float32: {job.settings.precision} would move labels by {shift:.3f} of their standard error"


def _measured_shift(job: DatasetLabels) -> float:
    """Root mean square shift of labels by low precision, over their standard error, on a few pictures."""
    torch.set_num_threads(1)
    chosen = range(min(4, job.num_pictures))
    chunk = collected(job, chosen, [decode(job, i) for i in chosen])
    if not chunk.ids:
        return 0.0
    classifier = to_device(job.model.load(), job.device)
    class_ids = torch.from_numpy(chunk.class_ids).to(job.device)
    return precision_shift(classifier, job.settings, job.inputs(chunk.pixels), class_ids)


def _calibrated(
    request: LabelRequest, job: DatasetLabels, base: Base, workers: cluster.Workers, say: Callable[[str], None]
) -> tuple[DatasetLabels, CalibrationReport]:
    """The job with a prior."""
    plain = replace(job, settings=replace(job.settings, estimator="size_adjusted", budget=request.calibration_budget))
    calibration = CalibrationJob(plain, base.num_patches, job.settings.budget, request.calibration_budget)
    shards = calibration.shards(request.num_calibration_pictures)
    missing = calibration.missing(shards)
    if missing:
        say(f"Calibration on {sum(len(s.indices) for s in shards)} pictures at {request.calibration_budget} evaluations")
        meter = LabelMeter(sum(len(s.indices) for s in missing))
        label_shards(calibration, missing, workers, meter.add)
    interruption.check()
    prior, report = calibration.prior(shards)
    say(_summary("Calibration", report))
    return replace(job, learned=prior), report


def _with_surrogate(
    request: LabelRequest, job: DatasetLabels, base: Base, workers: cluster.Workers, say: Callable[[str], None]
) -> tuple[DatasetLabels, CalibrationReport]:
    """The job with a surrogate, and the values it was fitted to."""
    learning = _surrogate_job(request, job, base)
    shards = learning.shards()
    missing = learning.missing(shards)
    if missing:
        number = sum(len(s.indices) for s in missing)
        say(f"Evaluating {number:,} pictures to learn a surrogate from; their labels will need no more")
        meter = LabelMeter(number)
        label_shards(learning, missing, workers, meter.add)
        _say_rate(meter, say)
    interruption.check()
    if learning.fitted() is None:
        progress = Progress("surrogate", default_epochs(sum(len(s.indices) for s in shards)), "epochs")
        for loss in cluster.stream_from_worker(_fitted, (learning, shards, workers.threads), workers):
            progress.advance(1, f"unexplained variance {loss:.3f}")
    found = learning.fitted()
    assert found is not None
    surrogate, report = found
    say(_summary("Surrogate", report))
    return replace(job, learned=surrogate, known=learning.known(shards)), report


def _fitted(learning: SurrogateJob, shards: list[GamesShard], threads: int) -> Iterator[float]:
    """`SurrogateJob.fit`, in a task."""
    torch.set_num_threads(threads)
    try:
        yield from learning.fit(shards)
    except ValueError as error:
        raise ConfigError(f"{error}: raise --calibration-pictures, or take another estimator") from error


def _surrogate_job(request: LabelRequest, job: DatasetLabels, base: Base) -> SurrogateJob:
    return SurrogateJob(job, base.num_patches, request.num_calibration_pictures, request.calibration_budget)


def _summary(what: str, report: CalibrationReport) -> str:
    return (
        f"{what}, on {report.num_held_out} held-out pictures: relative error {report.relative_error:.3f}, bias {report.bias:.3f}, "
        f"spread of errors over error bars {report.z_spread:.2f} (more in the card)"
    )

