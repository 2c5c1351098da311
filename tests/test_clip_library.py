"""open_clip's import leaves torch's compiler alone, and what torchvision and timm want of the compiler is there when it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from core.clip_library import _disable

PROGRAM = """
import json, sys
from core.clip_library import COMPILER, open_clip
from core.model import load_base

load_base("miniature")
after_the_import = COMPILER in sys.modules
import timm, torchvision
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
import torch._dynamo.utils
print(json.dumps([
    after_the_import, asked == torch._dynamo.utils.is_compile_supported("cpu"), type(torch._dynamo).__name__,
    hasattr(timm.models.naflexvit.NaFlexRopeIterator.__next__, "__wrapped__"), open_clip() is sys.modules["open_clip"],
    open_clip().timm_model.timm is timm,
]))
"""


def test_a_base_is_loaded_without_the_compiler_and_others_find_it_later():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, True, "module", True, True, True]


def test_what_is_kept_out_of_the_compiler_stays_out_and_does_the_same():
    compiled = []

    @_disable
    def kept_out(x: torch.Tensor) -> torch.Tensor:
        """Its own words."""
        compiled.append(torch.compiler.is_compiling())
        return x + 1

    twice = torch.compile(lambda x: kept_out(x) + kept_out(x), backend="eager")
    assert twice(torch.tensor(1.0)) == 4.0 and compiled == [False, False]
    assert kept_out.__doc__ == "Its own words." and _disable(reason="none")(abs)(-1) == 1
