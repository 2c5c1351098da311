"""Libraries import and training goes on without torch's compiler, and what is wanted of the compiler is there when it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from core.compiler import _disable

PROGRAM = """
import json, sys
from core.compiler import COMPILER
from core.clip_library import open_clip
from core.finetune import Recipe, finetune
from core.model import load_base
from core.side_head import fit_side_head
from core.training_data import PicturesInMemory, TrainingData
import torch

base = load_base("miniature")
torch.set_num_threads(1)
size = base.preprocessing.image_size
pixels = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
data = TrainingData(PicturesInMemory(pixels), torch.arange(4) % 2, base.preprocessing, torch.ones(4, base.num_patches))

def losses():
    classifier = base.classifier(base.head(["cat", "dog"], ["a photo of a {}."]))
    recipe = Recipe(1e-4, batch_size=2, num_steps=2)
    return [point.loss for point in finetune(classifier, data, recipe, 0.5)], fit_side_head(classifier, data, recipe)[1]

deferred = losses()
without = COMPILER in sys.modules
import timm, torchvision
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
import torch._dynamo.utils
print(json.dumps([
    without, deferred == losses(), asked == torch._dynamo.utils.is_compile_supported("cpu"),
    type(torch._dynamo).__name__, hasattr(timm.models.naflexvit.NaFlexRopeIterator.__next__, "__wrapped__"),
    open_clip() is sys.modules["open_clip"], open_clip().timm_model.timm is timm,
]))
"""


def test_a_base_is_loaded_and_trained_without_the_compiler_and_others_find_it_later():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, True, True, "module", True, True, True]


def test_what_is_kept_out_of_the_compiler_stays_out_and_does_the_same():
    compiled = []

    @_disable
    def kept_out(x: torch.Tensor) -> torch.Tensor:
        """Its own words."""
        compiled.append(torch.compiler.is_compiling())
        return x + 1

    assert kept_out(torch.tensor(1.0)) == 2.0
    twice = torch.compile(lambda x: kept_out(x) + kept_out(x), backend="eager")
    assert twice(torch.tensor(1.0)) == 4.0 and compiled == [False, False, False]
    assert kept_out.__doc__ == "Its own words." and _disable(reason="none")(abs)(-1) == 1
