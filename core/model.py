"""The self-explaining classifier (Figure 1 of the paper) over an open_clip image tower, and the base models it starts from."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from core.attribution_head import COSINE, AttributionHead
from core.clip_library import open_clip
from core.miniature.weights import load_state_dict
from core.tower import ImageTower, block_output, cls_token, embed, linear, tokens

_log = logging.getLogger(__name__)
_WORDNET_ID = re.compile(r"n\d{8}")

MINIATURE = "miniature"
RANDOM_WEIGHTS = "random"


class BaseModelError(ValueError):
    """The base model cannot be used; the message names the fix."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the tower's input: resize, centre crop to image_size x image_size, then (x - mean) / std."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """An RGB picture of any size -> uint8 [3, S, S]. Resizing as open_clip's evaluation transform does on PIL pictures."""
        size = self.image_size
        width, height = picture.size
        if (width, height) != (size, size):
            resample = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
            if self.resize_mode == "squash":
                picture = picture.resize((size, size), resample)
            else:
                short = min(width, height)
                new = (max(size, int(size * width / short)), max(size, int(size * height / short)))
                picture = picture.resize(new, resample)
                left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
                picture = picture.crop((left, top, left + size, top + size))
        return np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [N, 3, S, S] -> float32, 0 where a pixel has the data set's mean colour."""
        return (pixels.float() / 255.0 - _channels(self.mean, pixels.device)) / _channels(self.std, pixels.device)


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number a colour channel, [1, 3, 1, 1]. Made once a device: a GPU stands still while a value is copied to it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


@dataclass(frozen=True, eq=False)
class Base:
    """A CLIP model before fine-tuning: the image tower that is trained, and the frozen text tower that makes the heads.

    clip: the open_clip model that `visual` is part of; None where the text tower was dropped.
    """

    name: str
    visual: ImageTower
    clip: Any | None
    tokenizer: Callable[[list[str]], Tensor]
    preprocessing: Preprocessing
    logit_scale: float
    fingerprint: str

    @property
    def num_patches(self) -> int:
        return self.visual.grid_size[0] * self.visual.grid_size[1]

    def without_text_tower(self) -> Base:
        """The same base for those who have a head already: the text tower's memory (a third of ViT-B/32's) is free once `self` is."""
        return replace(self, clip=None)

    @torch.no_grad()
    def head(
        self, class_names: Sequence[str], templates: Sequence[str], *, device: torch.device | str = "cpu", batch_size: int = 256
    ) -> Tensor:
        """Zero-shot head W [K, C] on the CPU: per class the mean text embedding over the prompt templates, of unit length.

        device: where the text tower runs; float32 there too. batch_size: prompts encoded at once, of several classes where they are few.
        Raises BaseModelError for a base whose text tower was dropped.
        """
        if self.clip is None:
            raise BaseModelError("this base has no text tower: load it with load_base to make heads")
        text: Any = self.clip
        if torch.device(device).type != "cpu":
            text = copy.deepcopy(self.clip, {id(self.visual): nn.Identity()}).to(device)  # a copy of the text tower alone
        columns: list[Tensor] = []
        classes_at_once = max(1, batch_size // len(templates))
        for first in range(0, len(class_names), classes_at_once):
            names = class_names[first : first + classes_at_once]
            prompts = [template.format(name) for name in names for template in templates]
            embeddings = [text.encode_text(self.tokenizer(some).to(device)) for some in _chunks(prompts, batch_size)]
            unit = F.normalize(torch.cat(embeddings), dim=-1).unflatten(0, (len(names), -1))
            columns.append(F.normalize(unit.mean(1), dim=-1).cpu())
        return torch.cat(columns).T.contiguous()

    def classifier(self, head: Tensor, attribution_head: AttributionHead = COSINE) -> SelfExplainingClassifier:
        """A classifier with the base's weights (zero-shot), to be fine-tuned. head: [K, C] from `head`. Needs no text tower."""
        return SelfExplainingClassifier(copy.deepcopy(self.visual), head, self.logit_scale, attribution_head)


def _chunks(prompts: list[str], size: int) -> list[list[str]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


@dataclass(frozen=True)
class Explained:
    """What one forward pass gives. logits: [N, C]; attributions: [N, M], of the classes asked for."""

    logits: Tensor
    attributions: Tensor


class SelfExplainingClassifier(nn.Module):
    """CLIP image classifier whose one head serves the CLS token (logits) and every patch token (attributions), Figure 1.

    attribution_head says how the cosines of patch tokens and class embedding become attributions. All trained weights are those of
    `visual`; the head is fixed.
    """

    head: Tensor
    empty: Tensor | None

    def __init__(
        self, visual: ImageTower, head: Tensor, logit_scale: float, attribution_head: AttributionHead = COSINE
    ) -> None:
        super().__init__()
        check_supported(visual)
        if head.ndim != 2 or head.shape[0] != visual.proj.shape[1]:
            raise BaseModelError(f"the head must be [{visual.proj.shape[1]}, classes], not {list(head.shape)}")
        self.visual = visual
        self.visual.output_tokens = True  # open_clip's own forward pass, too, then gives both
        self.logit_scale = logit_scale
        self.attribution_head = attribution_head
        self.register_buffer("head", head)
        self.register_buffer("empty", None, persistent=False)

    def features(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of the CLS token [N, K] and of the patch tokens [N, M, K]. inputs: normalised [N, 3, S, S]."""
        unit = self._unit(tokens(self.visual, inputs))
        return unit[:, 0], unit[:, 1:]

    def logits(self, inputs: Tensor) -> Tensor:
        """Class logits [N, C] alone: those of `forward`, for less."""
        unit = self._unit(cls_token(self.visual, inputs))
        with self._in_float32():
            return self.logit_scale * unit @ self.head

    def forward(self, inputs: Tensor, class_ids: Tensor | None = None) -> Explained:
        """Logits, and the attributions of `class_ids` [N] (without: of each picture's predicted class), in one pass."""
        empty = self.empty if self.attribution_head.needs_empty else None
        if self.attribution_head.needs_empty and empty is None:
            cls, patches, empty = self._features_with_empty(inputs)
        else:
            cls, patches = self.features(inputs)
        with self._in_float32():
            logits = self.logit_scale * cls @ self.head
            ids = logits.argmax(dim=1) if class_ids is None else class_ids
            cosines = torch.einsum("nmk,kn->nm", patches, self.head[:, ids])
            gap = None if empty is None else self.attribution_head.gap(cls, empty, ids, self.head, self.logit_scale)
            return Explained(logits, self.attribution_head.attributions(cosines, gap))

    def fix_empty(self) -> None:
        """Keep the feature of the picture that shows nothing, for weights that change no more: a pass then takes only its pictures.

        Until then it is computed with every batch: where weights are trained or set point by point it changes with them.
        """
        with torch.no_grad():
            size, device = self.visual.image_size, self.head.device
            self.empty = self._features_with_empty(torch.zeros(1, 3, *size, device=device))[2]

    def _features_with_empty(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`features`, and the CLS feature [K] of the picture that shows nothing: all patches filled, or left out."""
        if self.attribution_head.game.fill == "mean":
            cls, patches = self.features(torch.cat([inputs, torch.zeros_like(inputs[:1])]))
            return cls[:-1], patches[:-1], cls[-1]
        states = embed(self.visual, torch.zeros_like(inputs[:1]))[:, :1]
        for block in self.visual.transformer.resblocks:
            states = block_output(block, states)
        return *self.features(inputs), self._unit(self.visual.ln_post(states))[0, 0]

    def _unit(self, states: Tensor) -> Tensor:
        """Projected tokens of unit length, in float32 whatever the tower computes in. [..., D] -> [..., K]"""
        return F.normalize(linear(states, self.visual.proj.t()).float(), dim=-1)

    def _in_float32(self) -> torch.autocast:
        """Products with the head are small, and what the losses are taken of: bfloat16 has three digits."""
        return torch.autocast(self.head.device.type, enabled=False)


def prompt_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names that prompts can be made of: for ImageNet's 1000 WordNet ids, open_clip's names; others as they are.

    The rank of a WordNet id among the 1000 is its usual label, so that the order stands.
    """
    if not all(_WORDNET_ID.fullmatch(name) for name in class_names):
        return tuple(class_names)
    if len(class_names) != 1000:
        _log.warning("the %d class names are WordNet ids, of which prompts say nothing: rename the directories", len(class_names))
        return tuple(class_names)
    return tuple(open_clip().IMAGENET_CLASSNAMES)


def check_supported(visual: nn.Module) -> None:
    """Raise BaseModelError unless the tower is a plain CLIP ViT: CLS pooling, standard residual blocks, a projection."""
    parts = open_clip().transformer
    if not isinstance(visual, parts.VisionTransformer):
        raise BaseModelError(f"the image tower is a {type(visual).__name__}: choose an open_clip ViT with a CLS token (ViT-B-32, say)")
    plain = all(type(b) is parts.ResidualAttentionBlock for b in visual.transformer.resblocks)
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool or visual.proj is None or not plain:
        raise BaseModelError("the image tower must pool its CLS token, have standard residual blocks and a projection (ViT-B-32, say)")


def load_base(name: str) -> Base:
    """Load a base model.

    name: `miniature` (weights in this package), an open_clip model with its pretrained tag (`ViT-B-32:datacomp_xl_s13b_b90k`), the same
    with the tag `random` (seeded random weights, for trials of the machinery only), or a directory in open_clip's local layout.
    Raises BaseModelError when there is no such model, its weights cannot be had, or do not match its configuration.
    """
    if name == MINIATURE:
        config, state = load_state_dict()
        return _build(name, config, state)
    directory = Path(name.removeprefix("local-dir:"))
    if name.startswith("local-dir:") or directory.is_dir():
        return _load_directory(directory)
    model_name, _, tag = name.partition(":")
    if model_name not in open_clip().list_models():
        close = ", ".join(m for m in open_clip().list_models() if m.lower().startswith(model_name.lower()[:5]))[:200]
        raise BaseModelError(f"unknown base model {model_name!r}: give `miniature`, NAME:TAG of open_clip or a directory; close: {close}")
    if not tag:
        tags = ", ".join(open_clip().list_pretrained_tags_by_model(model_name)) or "none"
        raise BaseModelError(f"name the weights of {model_name}: {model_name}:TAG with a TAG of: {tags} (or `random`)")
    if tag != RANDOM_WEIGHTS and tag not in open_clip().list_pretrained_tags_by_model(model_name):
        tags = ", ".join(open_clip().list_pretrained_tags_by_model(model_name))
        raise BaseModelError(f"{model_name} has no pretrained weights {tag!r}; there are: {tags} (or `random`)")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            clip = open_clip().create_model(model_name, pretrained=None if tag == RANDOM_WEIGHTS else tag, device="cpu")
    except Exception as error:  # open_clip raises what its downloader raises: any of a dozen types
        raise BaseModelError(
            f"the weights {tag!r} of {model_name} cannot be loaded ({error}): check the network, or give a directory"
        ) from error
    preprocessing = _preprocessing(name, open_clip().get_model_preprocess_cfg(clip))
    return _wrap(name, clip, open_clip().get_tokenizer(model_name), preprocessing, _fingerprint(preprocessing, clip.state_dict()))


def _load_directory(directory: Path) -> Base:
    config_file, weights_file = directory / "open_clip_config.json", directory / "open_clip_model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise BaseModelError(f"{directory} is no open_clip model directory: {file.name} is missing")
    from safetensors.torch import load_file

    try:
        config = json.loads(config_file.read_text())
        state = load_file(weights_file)
    except Exception as error:  # safetensors has an error type of its own for a file cut short
        raise BaseModelError(f"{directory} cannot be read ({error}): write the model again") from error
    return _build(str(directory), config, {k: v.float() for k, v in state.items()}, f"local-dir:{directory}")


def _build(name: str, config: dict, state: dict[str, Tensor], tokenizer: str | None = None) -> Base:
    """Build a CLIP after an open_clip configuration and fill in its weights, which must match it to the last key and shape."""
    with ThreadPoolExecutor(1) as pool:  # the fingerprint of large weights takes as long as all the rest
        try:
            settings = {k: v for k, v in config["model_cfg"].items() if k not in ("custom_text",)}
            preprocess = {"size": settings["vision_cfg"].get("image_size", 224), **config.get("preprocess_cfg", {})}
            preprocessing = _preprocessing(name, preprocess)
            fingerprint = pool.submit(_fingerprint, preprocessing, state)
            with _Undrawn():
                clip = open_clip().CLIP(**settings)
            clip.load_state_dict(state, strict=True, assign=True)
        except (RuntimeError, TypeError, KeyError) as error:
            raise BaseModelError(f"the weights of {name} do not match its configuration: {str(error)[:400]}") from error
        context = settings["text_cfg"]["context_length"]
        tokens = open_clip().get_tokenizer(tokenizer) if tokenizer else open_clip().SimpleTokenizer(context_length=context)
    return _wrap(name, clip, tokens, preprocessing, fingerprint.result())


class _Undrawn(TorchFunctionMode):
    """Random weights that loaded ones will replace take seconds to draw. Here nothing is drawn, and memory that nothing touches is none.

    What calls a function of `torch.nn.init` comes here as that function, and not as the `Tensor.normal_` in it. (On the device `meta` the
    first product imports torch's compiler, which takes as long.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def _preprocessing(name: str, settings: dict) -> Preprocessing:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise BaseModelError(f"{name} takes {height} x {width} pictures: choose a model with square input")
    mean, std = settings.get("mean") or open_clip().OPENAI_DATASET_MEAN, settings.get("std") or open_clip().OPENAI_DATASET_STD
    resizing = settings.get("interpolation", "bicubic"), settings.get("resize_mode", "shortest")
    return Preprocessing(height, tuple(float(v) for v in mean), tuple(float(v) for v in std), *resizing)


def _fingerprint(preprocessing: Preprocessing, state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(preprocessing), sort_keys=True).encode())
    for key, tensor in sorted(state.items()):
        digest.update(f"{key} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _wrap(name: str, clip: Any, tokenizer: Callable[[list[str]], Tensor], preprocessing: Preprocessing, fingerprint: str) -> Base:
    check_supported(clip.visual)
    clip.eval()
    for parameter in clip.parameters():
        parameter.requires_grad_(False)
    return Base(name, clip.visual, clip, tokenizer, preprocessing, float(clip.logit_scale.detach().exp()), fingerprint)
