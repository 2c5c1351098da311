"""The base model's weights: a small file in the package, from which the whole open_clip model is restored.

The model has the real CLIP tokenizer's 49408 token rows, but pretraining only ever sees a few hundred of them. The file
keeps those; the others are drawn again from a seed, with the standard deviation of the trained ones, so that any class
name gets an embedding of its own.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

BASE_DIRECTORY = Path(__file__).parent / "base"
VECTOR_FILE = Path(__file__).parent / "vectors" / "concepts.safetensors"
"""The explainability vector of `concepts` for this base, float16."""
_CONFIG_FILE = "open_clip_config.json"
_WEIGHTS_FILE = "open_clip_model.safetensors"
_TOKEN_EMBEDDING = "token_embedding.weight"


def load_state_dict(directory: Path = BASE_DIRECTORY) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """The base model: open_clip's configuration (`model_cfg`, `preprocess_cfg`) and all weights, float32.

    `open_clip.model.CLIP(**config["model_cfg"])` takes the weights with `strict=True`.
    """
    # Imported here so that drawing pictures does not need PyTorch.
    import torch
    from safetensors.torch import load_file

    config = json.loads((directory / _CONFIG_FILE).read_text())
    token_rows = config.pop("token_rows")
    state_dict = {name: tensor.float() for name, tensor in load_file(directory / _WEIGHTS_FILE).items()}
    trained_rows = state_dict[_TOKEN_EMBEDDING]
    num_tokens = config["model_cfg"]["text_cfg"]["vocab_size"]
    embedding = token_rows["standard_deviation"] * np.random.default_rng(token_rows["seed"]).standard_normal(
        (num_tokens, trained_rows.shape[1]), dtype=np.float32
    )
    embedding[token_rows["trained_ids"]] = trained_rows.numpy()
    state_dict[_TOKEN_EMBEDDING] = torch.from_numpy(embedding.astype(np.float32))
    return config, state_dict


def save_state_dict(
    directory: Path,
    config: dict[str, Any],
    state_dict: "dict[str, torch.Tensor]",
    trained_token_ids: list[int],
    seed: int,
) -> Path:
    """Write what `load_state_dict` reads, in float16, and return the path of the weights.

    `state_dict` holds the token rows of `trained_token_ids` only, in their order; `seed` is that of the other rows.
    """
    from safetensors.torch import save_file

    rows = state_dict[_TOKEN_EMBEDDING]
    assert len(rows) == len(trained_token_ids), (len(rows), len(trained_token_ids))
    token_rows = {
        "trained_ids": trained_token_ids,
        "seed": seed,
        "standard_deviation": round(float(rows.float().std()), 6),
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _WEIGHTS_FILE
    save_file({name: tensor.detach().half().contiguous() for name, tensor in state_dict.items()}, path)
    path.chmod(0o644)  # safetensors writes files that only their owner can read.
    (directory / _CONFIG_FILE).write_text(_to_json({**config, "token_rows": token_rows}))
    return path


def _to_json(config: dict[str, Any]) -> str:
    """Indented JSON with lists of numbers on one line."""
    parts = []
    for key, value in config.items():
        text = json.dumps(value, indent=None if key == "token_rows" else 2).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
