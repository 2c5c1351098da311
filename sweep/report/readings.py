"""What stands under each figure of the report: how to read it, in words that need no colour."""

from dataclasses import dataclass

from sweep.report.tables import SCORE_TITLES

MATRIX_TITLES = {
    **SCORE_TITLES,
    "lambda2": "chosen lambda2 and alpha",
    "similarity_prediction_only": "similarity of prediction-only vectors",
    "similarity_explainability": "similarity of explainability vectors",
}
MATRIX_READINGS = {
    "normalized_e_rmse": "Below 1 (blue) is better than the prediction-only target; shrinkage alone can do that.",
    "normalized_accuracy": "1 keeps the accuracy of the prediction-only target; red lost some.",
    "iou_at_10": "Overlap of the ten strongest patches with the label's. White is chance or below.",
    "correlation": "Correlation of predicted and label attributions, mean over pictures; no scale can flatter it.",
    "similarity_prediction_only": "Cosine of the prediction-only task vectors; needs no explanation labels.",
    "similarity_explainability": "Cosine of the explainability vectors of source and target.",
    "lambda2": "The chosen lambda2, and below it the chosen alpha.",
}


@dataclass(frozen=True)
class Caption:
    title: str
    text: str


TRADE_OFF = Caption(
    "Accuracy against explanation error, and against patch overlap",
    "Each point is a pair at its chosen alpha and lambda2, on test. Colour is the source domain, shape the target "
    "domain. Left: both scores divided by the prediction-only target model's (red dotted lines at 1); grey dashed is "
    "zero-shot, the mean over domains. Hollow shapes are the target model supervised directly. The shapes along the "
    "bottom mark where the zero predictor of each target lies, which explains nothing: a point right of its own "
    "target's mark has more error than no explanation at all. Right: the scale-free view, with chance and the label "
    "ceiling (how well two draws of the labels agree).",
)
SIMILARITY_CORRELATIONS = Caption(
    "Similarity of task vectors and success of the transfer",
    "Each point is a pair; the similarities are taken at the pair's chosen alpha. The line is the least-squares fit, "
    "the box gives Pearson's r and its p-value. The p-values treat pairs as independent, which pairs that share a "
    "domain are not; in (b) both orders of two domains are points, and coincide where their alphas do.",
)
EXAMPLES = Caption(
    "Pictures and their ten strongest patches",
    "Each row is a test picture of the domain at its left. The ten patches with the highest attribution for the true "
    "class are shown as they are, outlined; the rest is faded. Below each: IoU@10 with the label. The transferred "
    "explanation comes from the source domain named at the left.",
)


def coefficient_curves(split: str) -> Caption:
    return Caption(
        "The scaling coefficient lambda2",
        f"Scores on the {split} split against lambda2, a line a target domain, the mean over its sources. Each pair "
        "counts at its chosen alpha; between its evaluated points it is taken as straight. A falling E-RMSE with a "
        "flat IoU@10 is shrinkage, not explanation.",
    )


def matrix(column: str) -> Caption:
    title = MATRIX_TITLES[column]
    diagonal = " Framed on the diagonal: the model supervised on that domain." if column in SCORE_TITLES else ""
    text = f"Row: source domain, column: target domain. {MATRIX_READINGS[column]}{diagonal}"
    return Caption(title[0].upper() + title[1:], text)
