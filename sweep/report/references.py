"""What a transferred model is read against: the one table of reference rows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One reference row. meaning: begins in lower case and ends in a full stop. is_optional: not every sweep has it."""

    name: str
    title: str
    meaning: str
    is_optional: bool = False


_ALL = (
    Reference(
        "zero_predictor", "zero predictor", "answers 0 for every patch. It explains nothing, and yet its E-RMSE is low."
    ),
    Reference(
        "mean_map",
        "mean map",
        "answers the mean of the target's training labels for every picture: position alone, no picture.",
    ),
    Reference("other_mean_map", "other domain's mean map", "the same with the labels of another domain."),
    Reference("chance", "chance", "a random order of the patches."),
    Reference(
        "prediction_only",
        "prediction-only",
        "the target's classifier, trained without explanation supervision; what normalised scores are divided by.",
    ),
    Reference(
        "prediction_only_head",
        "prediction-only, normalised head",
        "the same classifier, its attributions shifted to meet the efficiency axiom as those of the transferred models are: what the head "
        "alone does.",
        is_optional=True,
    ),
    Reference("zero_shot", "zero-shot", "the base model, not trained on the target."),
    Reference(
        "grad_cam",
        "Grad-CAM",
        "Grad-CAM (Selvaraju et al., 2020) of the prediction-only model, at the last block's first normalisation; one pass a picture. Its "
        "maps have no unit: they are multiplied by the one number a target that suits the validation pictures' own game values best, "
        "which takes no label.",
        is_optional=True,
    ),
    Reference(
        "attention_rollout",
        "attention rollout",
        "attention rollout (Abnar and Zuidema, 2020) of the prediction-only model, the same for every class; one pass a picture. Scaled "
        "as Grad-CAM.",
        is_optional=True,
    ),
    Reference(
        "gradient_rollout",
        "gradient-weighted rollout",
        "rollout of the attention weights times their gradients (Chefer, Gur and Wolf, 2021) of the prediction-only model; about three "
        "passes a picture. Scaled as Grad-CAM.",
        is_optional=True,
    ),
    Reference(
        "supervised",
        "supervised",
        "trained on the target's own explanation labels, at the alpha of the pair: the upper bound for a transfer.",
    ),
    Reference(
        "side_head",
        "side head",
        "a small network on the frozen prediction-only model's last tokens, trained on the target's own explanation labels: what "
        "supervision reaches without touching the classifier, whose accuracy it keeps exactly; one pass a picture.",
        is_optional=True,
    ),
    Reference(
        "label_ceiling",
        "label ceiling",
        "how well two independent draws of the labels agree. A model without noise of its own could pass it a little; one far above it has "
        "learnt the labels' errors.",
    ),
)

REFERENCES = tuple(reference.name for reference in _ALL)
EXPECTED = tuple(reference.name for reference in _ALL if not reference.is_optional)
REFERENCE_TITLES = {reference.name: reference.title for reference in _ALL}
REFERENCE_MEANINGS = {reference.name: reference.meaning for reference in _ALL}
