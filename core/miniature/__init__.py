"""The embedded miniature suite: eight domains and a source drawn from a seed, and a tiny CLIP that was pretrained on drawings."""

from core.miniature.suite import DOMAIN_NAMES, SOURCE_NAMES, DrawnSplit, MiniatureDomain, domain_spec, draw_split
from core.miniature.weights import load_state_dict

__all__ = ["DOMAIN_NAMES", "SOURCE_NAMES", "DrawnSplit", "MiniatureDomain", "domain_spec", "draw_split", "load_state_dict"]
