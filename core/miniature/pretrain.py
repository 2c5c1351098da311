"""Pretrain the miniature suite's base model: a tiny CLIP, contrastively, from captioned drawings.

    python -m core.miniature.pretrain

writes `core/miniature/base/` anew. It takes about 20 minutes on one core. The schedule counts steps, not seconds: the
same seed gives the same model on the same machine.
"""

import argparse
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from core.miniature.captions import TEMPLATES, draw_captioned
from core.miniature.suite import DOMAIN_NAMES, domain_spec, draw_split
from core.miniature.weights import BASE_DIRECTORY, load_state_dict, save_state_dict

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 56,
            "layers": 3,
            "width": 96,
            "head_width": 32,
            "patch_size": 8,
            "mlp_ratio": 4.0,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.27, 0.27],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
"""The architecture and the preprocessing, as open_clip writes them."""


@dataclass(frozen=True)
class Recipe:
    """What the weights depend on."""

    seed: int = 0
    num_pictures: int = 60_000
    num_steps: int = 4_500
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    masked_share: float = 0.3
    """Share of the pictures of which patches are filled with the mean colour, as Shapley coalitions fill them."""
    largest_filled_share: float = 0.8
    """At most this share of a picture's patches is filled."""
    largest_shift: int = 3
    """Pictures are shifted by up to so many pixels each way."""


@dataclass(frozen=True)
class CaptionedPictures:
    """Drawings and what they show."""

    pictures: np.ndarray
    """uint8 [N, 56, 56, 3]"""
    phrases: list[str]
    """The distinct phrases; pictures with the same one are each other's positives."""
    phrase_ids: torch.Tensor
    """int64 [N], into `phrases`"""


def draw_pictures(recipe: Recipe) -> CaptionedPictures:
    """The pretraining set: about a millisecond a picture."""
    drawn = [draw_captioned(recipe.seed, index) for index in range(recipe.num_pictures)]
    phrases, phrase_ids = np.unique([phrase for _, phrase in drawn], return_inverse=True)
    return CaptionedPictures(np.stack([picture for picture, _ in drawn]), phrases.tolist(), torch.from_numpy(phrase_ids))


def tokenize(phrases: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of the phrases in each template, as compact token ids [phrases, templates, 16]; the ids they stand for.

    Compact ids number the tokens in use in ascending order, so that a model with a few hundred token rows can be
    trained: end-of-text stays the largest, as CLIP's pooling needs.
    """
    tokenizer = SimpleTokenizer(context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])
    captions = torch.stack([tokenizer([template.format(phrase) for template in TEMPLATES]) for phrase in phrases])
    token_ids, compact = captions.unique(return_inverse=True)
    return compact, token_ids


def preprocess(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] to normalised float32 [N, 3, H, W]."""
    mean, std = (torch.tensor(CONFIG["preprocess_cfg"][name]).view(3, 1, 1) for name in ("mean", "std"))
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / std


def batches(num_pictures: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices of batches without end: every picture once an epoch, in a new order each."""
    while True:
        for indices in torch.randperm(num_pictures, generator=generator).split(batch_size):
            if len(indices) == batch_size:
                yield indices


def augment(pixels: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Shift the batch, and fill random patches of a share of its pictures with the mean colour (0 once normalised)."""
    shift = torch.randint(-recipe.largest_shift, recipe.largest_shift + 1, (2,), generator=generator).tolist()
    pixels = pixels.roll(shift, (2, 3))
    num, _, size, _ = pixels.shape
    patch_size = CONFIG["model_cfg"]["vision_cfg"]["patch_size"]
    grid = size // patch_size
    is_masked = torch.rand(num, 1, 1, generator=generator) < recipe.masked_share
    filled_share = recipe.largest_filled_share * torch.rand(num, 1, 1, generator=generator)
    is_filled = is_masked & (torch.rand(num, grid, grid, generator=generator) < filled_share)
    return pixels * ~is_filled.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]


def contrastive_loss(
    image_features: torch.Tensor, phrase_features: torch.Tensor, phrase_of_image: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric loss where several images of a batch share a phrase.

    Takes unit features [B, E] of images and [P, E] of the batch's distinct phrases, and each image's phrase, [B].
    An image's negatives count as often as their phrase occurs; a phrase's target is spread over its images.
    """
    logits = scale * image_features @ phrase_features.T
    counts = torch.bincount(phrase_of_image, minlength=len(phrase_features)).float()
    image_loss = F.cross_entropy(logits + counts.log(), phrase_of_image)
    is_positive = F.one_hot(phrase_of_image, len(phrase_features)).float()
    phrase_losses = -(is_positive / counts * logits.log_softmax(0)).sum(0)
    return (image_loss + (phrase_losses * counts).sum() / counts.sum()) / 2


def train(recipe: Recipe, data: CaptionedPictures) -> tuple[CLIP, torch.Tensor]:
    """A trained model with compact token rows, and the token ids that they stand for."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    captions, token_ids = tokenize(data.phrases)
    text_config = {**CONFIG["model_cfg"]["text_cfg"], "vocab_size": len(token_ids)}
    model = CLIP(**{**CONFIG["model_cfg"], "text_cfg": text_config}).train()

    is_decayed = {id(parameter): parameter.ndim > 1 for parameter in model.parameters()}
    is_decayed[id(model.token_embedding.weight)] = False
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if is_decayed[id(p)]], "weight_decay": recipe.weight_decay},
            {"params": [p for p in model.parameters() if not is_decayed[id(p)]], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )

    def learning_rate_factor(step: int) -> float:
        return min(1, (step + 1) / recipe.warmup_steps) * 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    started, losses = time.monotonic(), []
    index_batches = batches(len(data.pictures), recipe.batch_size, generator)
    for step in range(1, recipe.num_steps + 1):
        indices = next(index_batches)
        pixels = augment(preprocess(data.pictures[indices.numpy()]), recipe, generator)
        phrases, phrase_of_image = data.phrase_ids[indices].unique(return_inverse=True)
        templates = torch.randint(len(TEMPLATES), (len(phrases),), generator=generator)
        loss = contrastive_loss(
            model.encode_image(pixels, normalize=True),
            model.encode_text(captions[phrases, templates], normalize=True),
            phrase_of_image,
            model.logit_scale.exp(),
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        losses.append(loss.item())
        if step % 100 == 0 or step == recipe.num_steps:
            seconds_left = (time.monotonic() - started) / step * (recipe.num_steps - step)
            print(
                f"step {step}/{recipe.num_steps}  loss {np.mean(losses[-100:]):.3f}  {seconds_left:.0f} s left",
                flush=True,
            )
    return model.eval(), token_ids


@torch.inference_mode()
def zero_shot_accuracies(model: CLIP, num_pictures: int = 200) -> dict[str, float]:
    """Share of each domain's first test pictures that the model names rightly, prompted with the domain's templates."""
    tokenizer = SimpleTokenizer(context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])
    accuracies = {}
    for name in DOMAIN_NAMES:
        domain = domain_spec(name)
        pictures, class_ids = draw_split(name, "test", num_pictures)
        prompts = [[template.format(class_name) for template in domain.templates] for class_name in domain.class_names]
        class_features = torch.stack([model.encode_text(tokenizer(of_class), normalize=True).mean(0) for of_class in prompts])
        logits = model.encode_image(preprocess(pictures), normalize=True) @ F.normalize(class_features, dim=-1).T
        accuracies[name] = float((logits.argmax(1).numpy() == class_ids).mean())
    return accuracies


def load_base(directory: Path = BASE_DIRECTORY) -> CLIP:
    """The model as its users get it: from the files, with all token rows."""
    config, state_dict = load_state_dict(directory)
    model = CLIP(**config["model_cfg"])
    model.load_state_dict(state_dict, strict=True)
    return model.eval()


def describe(recipe: Recipe, weights: Path, seconds: dict[str, float], accuracies: dict[str, float]) -> str:
    """The README beside the weights."""
    table = [f"| {name} | {len(domain_spec(name).class_names)} | {accuracies[name]:.3f} |" for name in DOMAIN_NAMES]
    command = "python -m core.miniature.pretrain"
    for option, field in (("--steps", "num_steps"), ("--pictures", "num_pictures"), ("--seed", "seed")):
        if getattr(recipe, field) != getattr(Recipe(), field):
            command += f" {option} {getattr(recipe, field)}"
    settings = [f"| {name} | {value} |" for name, value in asdict(recipe).items()]
    lines = [
        "# The miniature suite's base model",
        "",
        "A tiny CLIP, pretrained contrastively on captioned drawings by",
        "",
        f"    {command}",
        "",
        "on one thread; it wrote this directory, this page included. The pictures are those of",
        f"`core/miniature/captions.py`, seed {recipe.seed}: they took {seconds['drawing']:.0f} s of processor time",
        f"to draw, the training {seconds['training']:.0f} s. No picture of a domain is among them.",
        "",
        "`open_clip_model.safetensors` is float16 and holds only the token rows that pretraining used; read it with",
        "`core.miniature.load_state_dict`, which restores the others from the seed in `open_clip_config.json`.",
        "",
        f"sha256 of the weights: `{hashlib.sha256(weights.read_bytes()).hexdigest()}`",
        "",
        "| setting | value |",
        "| --- | --- |",
        *settings,
        "",
        "Zero-shot accuracy on the first 200 test pictures of each domain:",
        "",
        "| domain | classes | accuracy |",
        "| --- | --- | --- |",
        *table,
        f"| mean | | {np.mean(list(accuracies.values())):.3f} |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw, train, write, and print what the written model knows without fine-tuning."""
    parser = argparse.ArgumentParser(prog="python -m core.miniature.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, default=BASE_DIRECTORY, help="directory to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Recipe.num_steps, help="(default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=Recipe.num_pictures, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="(default: %(default)s)")
    arguments = parser.parse_args()
    recipe = Recipe(seed=arguments.seed, num_pictures=arguments.pictures, num_steps=arguments.steps)

    torch.set_num_threads(1)
    started = time.process_time()
    data = draw_pictures(recipe)
    drawn = time.process_time()
    print(f"{len(data.pictures)} pictures, {len(data.phrases)} phrases, {drawn - started:.0f} s", flush=True)
    model, token_ids = train(recipe, data)
    seconds = {"drawing": drawn - started, "training": time.process_time() - drawn}
    weights = save_state_dict(arguments.out, CONFIG, model.state_dict(), token_ids.tolist(), recipe.seed)

    accuracies = zero_shot_accuracies(load_base(arguments.out))
    for name, accuracy in accuracies.items():
        print(f"zero-shot {name:15s} {accuracy:.3f}  (chance {1 / len(domain_spec(name).class_names):.3f})")
    print(f"zero-shot mean            {np.mean(list(accuracies.values())):.3f}")
    (arguments.out / "README.md").write_text(describe(recipe, weights, seconds, accuracies))


if __name__ == "__main__":
    main()
