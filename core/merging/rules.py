"""The merge rules by name. What each declares is in `rule`; adding one is a module that holds it.

addition: equation 8. lines: less in early blocks. opcm: nothing in the directions that the target's own vector uses most. ties: only
large weights whose sign the target does not outvote. dare: a random part, scaled up. fisher: each weight by what it is worth to source and
target. gradient_sign: only weights that do not raise the target's classification loss. atlas: each tensor by a coefficient that is learned
on the target's pictures; atlas_rows: each row of a matrix.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from core import merging
from core.merging.parameters import parse, parse_searched
from core.merging.rule import MergeRule


def _declared() -> dict[str, MergeRule]:
    """The rules that the modules of this package hold, by name."""
    names = [module.name for module in pkgutil.iter_modules(merging.__path__) if f"{merging.__name__}.{module.name}" != __name__]
    modules = [importlib.import_module(f"{merging.__name__}.{name}") for name in names]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value) and issubclass(value, MergeRule)}
    found = {rule.name: rule() for rule in classes if not inspect.isabstract(rule)}
    return dict(sorted(found.items()))


MERGE_RULES: dict[str, MergeRule] = _declared()
"""Every rule that can be asked for, with its default parameters."""


def parse_rule(text: str) -> MergeRule:
    """A rule by `NAME` or `NAME:key=value,key=value`. Raises ParameterError, with what there is, for a bad name, parameter or value."""
    return parse(text, MERGE_RULES, "merge rule")


def parse_searched_rule(text: str) -> tuple[MergeRule, tuple[str, ...]]:
    """A rule and those of its parameters that are to be searched: `fisher:source_share=search`. Raises ParameterError."""
    return parse_searched(text, MERGE_RULES, "merge rule")
