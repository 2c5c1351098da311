"""The suites: functions that return a configuration. A variant is a suite with changed fields (`dataclasses.replace`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from core import miniature as drawings
from core.finetune import Recipe
from core.games.attribution_labels import LabelSettings, fast_precision
from core.merging.fisher import Fisher
from core.model import MINIATURE
from sweep.experiment.config import ConvergenceSettings, DataSettings, DomainLocation, SearchSettings, SplitLabels, SweepConfig
from sweep.experiment.sources import OTHERS, TOGETHER

DRAWN = "miniature:"
"""Prefix of the location of a domain that is drawn."""
CONCEPTS = "concepts"
"""The drawn source of many classes, none of which a target has."""
IMAGENET = "imagenet"


def miniature() -> SweepConfig:
    """Eight drawn domains that mirror the paper's, and a diverse source that is no target: 64 pairs, on the tiny base in this package.

    Labels are size-adjusted: about the error of plain Kernel SHAP at twice the evaluations (`benchmarks/labels.py`).
    """
    precision = fast_precision("cpu")
    return SweepConfig(
        suite="miniature",
        base=MINIATURE,
        domains=(
            *(DomainLocation(name, f"{DRAWN}{name}") for name in drawings.DOMAIN_NAMES),
            DomainLocation(
                CONCEPTS,
                f"{DRAWN}{CONCEPTS}",
                data=DataSettings(max_train_pictures=2500, max_test_pictures=110, validation_share=0.04),
                is_source_only=True,
            ),
        ),
        data=DataSettings(max_train_pictures=650, max_test_pictures=120, validation_share=200 / 650),
        recipe=Recipe(learning_rate=5e-4, batch_size=32, num_steps=200, warmup_steps=20),
        diverse_recipe=Recipe(learning_rate=5e-4, batch_size=64, num_steps=600, warmup_steps=30),
        head="efficiency",
        labels=SplitLabels(
            train=LabelSettings(budget=224, precision=precision, estimator="size_adjusted"),
            validation=LabelSettings(budget=224, pool_size=8, precision=precision, num_perturbations=64, estimator="size_adjusted"),
            test=LabelSettings(budget=448, pool_size=8, precision=precision, num_perturbations=64, estimator="size_adjusted"),
            max_validation=25,
            max_test=40,
            num_second_draw=10,
        ),
        search=SearchSettings(
            alphas=(0.2, 0.5), lambdas=(0.0, 2.0), num_trials=16, objective="accuracy_bound", calibration="scale"
        ),
    )


def own_domains(domains: Sequence[DomainLocation]) -> SweepConfig:
    """The user's own image sets with the miniature's base and recipe; `--base` takes a larger model."""
    template = miniature()
    return SweepConfig(
        suite="own",
        base=template.base,
        domains=tuple(domains),
        data=DataSettings(max_train_pictures=1000, max_test_pictures=200),
        recipe=template.recipe,
        labels=template.labels,
        search=template.search,
        head=template.head,
        diverse_recipe=template.diverse_recipe,
    )


def paper() -> SweepConfig:
    """Section 5.1 of the paper: ViT-B/32 (DataComp-1B), eight data sets, alpha 0.1 to 0.9, lambda2 0.0 to 1.2, for a GPU cluster.

    The fine-tuning recipe is the one customary for ViT-B/32 in the task-arithmetic literature.
    """
    mirrors = (
        ("cars", "tanganke/stanford_cars", 35, ("a photo of a {}, a type of car.", "a photo of the {}.", "a photo of my {}.")),
        ("dtd", "tanganke/dtd", 76, ("a photo of a {} texture.", "a photo of a {} pattern.", "a photo of a {} thing.")),
        ("eurosat", "tanganke/eurosat", 12, ("a centered satellite photo of {}.", "a satellite photo of {}.")),
        ("gtsrb", "tanganke/gtsrb", 11, ('a zoomed in photo of a "{}" traffic sign.', 'a close up photo of a "{}" traffic sign.')),
        ("resisc45", "tanganke/resisc45", 15, ("satellite imagery of {}.", "aerial imagery of {}.", "satellite photo of {}.")),
        ("sun397", "tanganke/sun397", 14, ("a photo of a {}.", "a photo of the {}.")),
        ("svhn", "ufldl-stanford/svhn/cropped_digits", 4, ('a photo of the number: "{}".',)),
        ("mnist", "ylecun/mnist/mnist", 5, ('a photo of the number: "{}".',)),
    )
    return SweepConfig(
        suite="paper",
        base="ViT-B-32:datacomp_xl_s13b_b90k",
        domains=tuple(
            DomainLocation(name, f"hf://datasets/{path}", templates, epochs) for name, path, epochs, templates in mirrors
        ),
        data=DataSettings(),
        recipe=Recipe(learning_rate=1e-5, batch_size=128, epochs=10, warmup_steps=500, weight_decay=0.1, precision="bfloat16"),
        labels=SplitLabels(
            train=LabelSettings(budget=500, precision="bfloat16"),
            validation=LabelSettings(budget=500, pool_size=8, precision="bfloat16", num_perturbations=64),
            test=LabelSettings(budget=1024, pool_size=8, precision="bfloat16", num_perturbations=64),
            max_test=2000,
            num_second_draw=64,
            shard_size=256,
        ),
        search=SearchSettings(
            method="grid",
            alphas=tuple(round(0.1 * i, 1) for i in range(1, 10)),
            lambdas=tuple(round(0.1 * i, 1) for i in range(13)),
        ),
        device="cuda",
    )


def universal_miniature() -> SweepConfig:
    """The miniature's eight targets, each with the vector of the drawn `concepts`, with that of all other domains, and with both in one.

    One alpha: it costs a training of every union, and at equal accuracy 0.2 explains better than 0.5. Merged by Fisher information, which
    explains best at equal accuracy (`benchmarks/results/merging.md`).
    """
    template = miniature()
    search = replace(template.search, alphas=(0.2,), merge=Fisher(source_share=0.3), compares_objectives=True)
    convergence = ConvergenceSettings((104, 128, 160, 208, 256, 336, 448), num_pictures=20)
    sources = (CONCEPTS, OTHERS, f"{CONCEPTS}{TOGETHER}{OTHERS}")
    return replace(template, sources=sources, search=search, scores_source_models=True, convergence=convergence)


def universal_paper() -> SweepConfig:
    """Section 5.2 of the paper: the vector of ImageNet-1k for ten data sets, those of section 5.1 with CIFAR-100 and STL-10.

    ImageNet is gated: the hub gives it to those who accepted its terms and are logged in (`HF_TOKEN`).
    """
    template = paper()
    photo = ("a photo of a {}.", "a photo of the {}.")
    more = (
        DomainLocation("cifar100", "hf://datasets/tanganke/cifar100", photo, 6),
        DomainLocation("stl10", "hf://datasets/tanganke/stl10", photo, 60),
        DomainLocation(IMAGENET, "hf://datasets/ILSVRC/imagenet-1k", photo, 4, is_source_only=True),
    )
    return replace(
        template,
        domains=(*template.domains, *more),
        sources=(IMAGENET,),
        scores_source_models=True,
        convergence=ConvergenceSettings((100, 150, 200, 300, 500, 1000), num_pictures=100),
    )


SUITES: dict[str, Callable[[], SweepConfig]] = {"miniature": miniature, "paper": paper}

UNIVERSAL_SUITES: dict[str, Callable[[], SweepConfig]] = {"miniature": universal_miniature, "paper": universal_paper}
"""Section 5.2."""
