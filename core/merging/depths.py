"""How deep in the image tower a weight stands."""

from __future__ import annotations

import re
from collections.abc import Iterable

from core.merging.rule import MergeRuleError

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_BEFORE_THE_BLOCKS = ("class_embedding", "positional_embedding", "conv1.", "ln_pre.")
_AFTER_THE_BLOCKS = ("ln_post.", "proj")


def depths(names: Iterable[str]) -> dict[str, int]:
    """Weight's name -> its block's index, 0 to L - 1.

    Embeddings and the normalisation after them belong to the first block; `ln_post` and `proj` to the last one: every attribution is read
    through them. Raises MergeRuleError for names that are not those of an open_clip ViT.
    """
    blocks: dict[str, int] = {}
    after = []
    for name in names:
        if (block := _BLOCK.match(name)) is not None:
            blocks[name] = int(block[1])
        elif name.startswith(_BEFORE_THE_BLOCKS):
            blocks[name] = 0
        elif name.startswith(_AFTER_THE_BLOCKS):
            after.append(name)
        else:
            raise MergeRuleError(f"it is not known how deep {name} stands: take a rule that treats all depths alike, such as addition")
    last = max(blocks.values(), default=0)
    return blocks | {name: last for name in after}
