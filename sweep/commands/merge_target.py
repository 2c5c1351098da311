"""A user's fine-tuned model as what vectors are merged into: what merge rules need of it is measured on the user's pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from core.games.learned_coefficients import learn_coefficients
from core.merging.addition import Addition
from core.merging.atlas import Atlas
from core.merging.rule import Evidence, MergeRule, MergeRuleError, Need
from core.model import SelfExplainingClassifier
from core.sensitivity import class_fisher, class_gradient
from core.task_vectors import TaskVector, Weights
from core.training_data import PicturesInMemory, TrainingData
from sweep.commands.target_pictures import OwnersPictures, TargetPictures
from sweep.experiment.config import ConfigError
from sweep.stages.sensitivity import NUM_PICTURES

OR_ADDITION = "or take --merge addition, which needs nothing"
_OF_ANY_PICTURES: dict[Need, str] = {
    "class_fisher": "the weights that your model's predictions hang on",
    "coefficients": "how much of each tensor of the vector your model takes",
}
"""What reads no label of the pictures."""


def check_measurable(rule: MergeRule, has_labelled: bool, has_pictures: bool) -> None:
    """Raise ConfigError, with the fix, unless there are the pictures that a rule needs something measured on."""
    if "class_gradient" in rule.needs and not has_labelled:
        raise ConfigError(
            f"--merge {rule.text} needs class_gradient, of your model's loss: give labelled pictures with --validation, {OR_ADDITION}"
        )
    for need in rule.needs:
        if need in _OF_ANY_PICTURES and not has_pictures:
            raise ConfigError(
                f"--merge {rule.text} needs {need}, {_OF_ANY_PICTURES[need]}: give pictures of your classes, unlabelled ones with "
                f"--calibrate or labelled ones with --validation, {OR_ADDITION}"
            )


class MergeTarget:
    """Edits explainability vectors by merge rules, as lambda2 then multiplies them: for one target, of which each need is measured once.

    classifier: on its device; its tower is overwritten where something is measured. target_task: fine_tuned minus base; None where
    addition is the only rule. pictures: the labelled ones are measured on, where there are some, else the unlabelled; coefficients are
    learned, for each vector, on those that are kept apart for it. class_fisher and coefficients read no label.
    """

    def __init__(
        self, classifier: SelfExplainingClassifier, fine_tuned: Weights, target_task: TaskVector | None, pictures: OwnersPictures
    ) -> None:
        self._classifier, self._fine_tuned, self._target_task, self._pictures = classifier, fine_tuned, target_task, pictures
        self._measured: dict[Need, dict[str, Tensor]] = {}

    def edited(self, rule: MergeRule, vector: TaskVector, attribution_fisher: Weights | None) -> TaskVector:
        """On the classifier's device; the vector itself for addition.

        Raises ConfigError, with the fix, where something that the rule needs is not there, TaskVectorError for another architecture.
        """
        if rule == Addition():
            return vector
        assert self._target_task is not None
        own = {need: self._measure(rule, need, vector) for need in rule.needs if need != "attribution_fisher"}
        evidence = Evidence(**own, attribution_fisher=attribution_fisher)
        try:
            return rule.edited_on(self._classifier.head.device, self._target_task, vector, evidence)
        except MergeRuleError as error:
            raise ConfigError(f"--merge {rule.text}: {error}") from error

    def described(self, rule: MergeRule, vector: str) -> dict[str, Any]:
        """A rule for the record: its parameters, and what its needs were measured on. vector: where it and the source's part came from."""
        evidence: dict[str, Any] = {}
        for need in rule.needs:
            evidence[need] = {"source": vector}
            if need != "attribution_fisher" and (pictures := self._used(need)) is not None:
                most = rule.num_pictures if isinstance(rule, Atlas) else NUM_PICTURES
                evidence[need] = {**pictures.described, "num_pictures": min(most, len(pictures.pixels))}
        found = {"rule": rule.name, "parameters": asdict(rule), "evidence": evidence}
        return {name: value for name, value in found.items() if value}

    def _used(self, need: Need) -> TargetPictures | None:
        return self._pictures.learned if need == "coefficients" else self._pictures.validation or self._pictures.calibration

    def _measure(self, rule: MergeRule, need: Need, vector: TaskVector) -> dict[str, Tensor]:
        if need not in self._measured:
            pictures, classifier = self._used(need), self._classifier
            check_measurable(rule, self._pictures.validation is not None, pictures is not None)
            assert pictures is not None
            labelled = self._pictures.validation is not None and pictures.class_ids is not None
            class_ids = torch.from_numpy(pictures.class_ids) if labelled else torch.zeros(len(pictures.pixels), dtype=torch.long)
            data = TrainingData(PicturesInMemory(pictures.pixels), class_ids, self._pictures.preprocessing)
            classifier.visual.load_state_dict(dict(self._fine_tuned))
            if need == "coefficients":
                assert isinstance(rule, Atlas)
                classifier.empty = None
                return learn_coefficients(classifier, data, vector, rule).of_vector(0)  # of one vector: nothing to keep
            # With the paper's head: only classes are measured, and the other one takes a further pass for its empty picture.
            measured = SelfExplainingClassifier(classifier.visual, classifier.head, classifier.logit_scale).eval()
            measure = {"class_fisher": class_fisher, "class_gradient": class_gradient}[need]
            self._measured[need] = measure(measured, data, NUM_PICTURES)
        return self._measured[need]
