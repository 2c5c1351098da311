"""A transferred model as MLflow serves it: a picture in, its class, probability and map out. MLflow runs this file by itself."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from core.data.pictures import PictureError, decode_picture
from sweep.explain.model import BATCH_SIZE, ExplainingModel, UnknownClassError, softmax


class ServedModel(PythonModel):
    """Rows with a picture's file in base64 (`image`) and, if one is asked for, a class (`class`).

    A row out: `class` (the asked one, else the predicted), its `probability`, and `attributions`, a list of rows of numbers, one a patch.
    A row that is no picture, or asks for an unknown class, is refused by its number (HTTP 400); nothing is left out in silence.
    """

    def load_context(self, context: Any) -> None:
        (directory,) = context.artifacts.values()  # the one that `transfer` wrote
        self._model = ExplainingModel.load(Path(directory))

    # No type hints: MLflow would take them for the input's schema, which the signature gives.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001
        """model_input: a pandas DataFrame. Raises MlflowException for a row that cannot be answered."""
        pictures = [self._pixels(number, text) for number, text in enumerate(model_input["image"])]
        asked = list(model_input["class"]) if "class" in model_input else [None] * len(pictures)
        class_ids = [self._class_id(number, name) for number, name in enumerate(asked)]
        found = []
        for start in range(0, len(pictures), BATCH_SIZE):
            found += self._answers(np.stack(pictures[start : start + BATCH_SIZE]), class_ids[start : start + BATCH_SIZE])
        return found

    def _answers(self, pixels: np.ndarray, asked: list[int | None]) -> list[dict[str, Any]]:
        """Pixels uint8 [N, 3, S, S] -> a row each."""
        batch = torch.from_numpy(pixels)
        ids = None
        if any(class_id is not None for class_id in asked):
            predicted = self._model.maps(batch).class_ids[:, 0]
            ids = np.array([own if class_id is None else class_id for class_id, own in zip(asked, predicted, strict=True)])[:, None]
        maps = self._model.maps(batch, ids)
        probabilities = softmax(maps.logits)
        return [
            {
                "class": self._model.class_names[class_id],
                "probability": float(probabilities[n, class_id]),
                "attributions": maps.attributions[n, 0].tolist(),
            }
            for n, class_id in enumerate(maps.class_ids[:, 0])
        ]

    def _pixels(self, number: int, text: Any) -> np.ndarray:
        """[3, S, S]"""
        try:
            return self._model.preprocessing.pixels(decode_picture(base64.b64decode(str(text), validate=True)))
        except (binascii.Error, PictureError) as error:
            raise MlflowException.invalid_parameter_value(
                f"the image of row {number} is no picture: {error}. Send the bytes of a file (PNG, JPEG, ...) in base64"
            ) from error

    def _class_id(self, number: int, name: Any) -> int | None:
        if name is None or name != name:  # a missing value may come as NaN
            return None
        try:
            return self._model.class_id(str(name))
        except UnknownClassError as error:
            raise MlflowException.invalid_parameter_value(f"row {number}: {error}") from error


set_model(ServedModel())
