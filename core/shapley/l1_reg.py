"""The option `l1_reg`, in the shap library's words: which players an estimator may leave out."""

from __future__ import annotations

import re

_NUM_FEATURES = re.compile(r"num_features\((\d+)\)")


def parse_l1_reg(text: str) -> int | str | None:
    """`none` -> None, `num_features(10)` -> 10, `aic` or `bic` as they are. Raises ValueError for anything else."""
    if text == "none" or text in ("aic", "bic"):
        return None if text == "none" else text
    match = _NUM_FEATURES.fullmatch(text)
    if match is None or int(match[1]) < 1:
        raise ValueError(f"l1_reg must be none, num_features(K), aic or bic, not {text!r}")
    return int(match[1])
