"""Things that are chosen by name and may have parameters, as text: `NAME` or `NAME:key=value,key=value`."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar


class ParameterError(ValueError):
    """A name that there is not, a parameter that it does not have, or a value out of its range; the message says what there is."""


@dataclass(frozen=True)
class Parametrised(ABC):
    """A frozen dataclass with a name, whose fields are numbers with defaults: its parameters."""

    name: ClassVar[str]

    @property
    def text(self) -> str:
        """As the command line takes it, every parameter named: `ties:share=0.2`."""
        values = ",".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return f"{self.name}:{values}" if values else self.name

    def search_space(self) -> Mapping[str, tuple[float, float]]:
        """The parameters that a search may vary -> the two ends of their range, both allowed."""
        return {}

    def with_parameters(self, values: Mapping[str, float]) -> Self:
        """The same with other values of some parameters. Raises ParameterError for a name that is no parameter, and for a bad value."""
        known = [field.name for field in fields(self)]
        for name in values:
            if name not in known:
                raise ParameterError(f"{self.name} has no parameter {name!r}: it has {', '.join(known) or 'none'}")
        return replace(self, **values)


P = TypeVar("P", bound=Parametrised)


def parse(text: str, table: Mapping[str, P], what: str) -> P:
    """An entry of a table of defaults by its text. what: the entries' kind, for messages. Raises ParameterError."""
    name, colon, given = text.partition(":")
    if name not in table:
        raise ParameterError(f"unknown {what} {name!r}: choose among {', '.join(table)}")
    found = table[name]
    by_name = {field.name: field for field in fields(found)}
    values: dict[str, float] = {}
    for part in given.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise ParameterError(f"{text!r} gives no value for {key!r}: write {_form(found)}")
        if key in values:
            raise ParameterError(f"{text!r} gives {key} twice: give one value")
        values[key] = _number(key, value, by_name[key]) if key in by_name else 0.0  # refused below, with the names there are
    return found.with_parameters(values)


def _form(found: Parametrised) -> str:
    known = ",".join(f"{field.name}=VALUE" for field in fields(found))
    return f"{found.name}:{known}" if known else f"{found.name}, which has no parameters"


def _number(key: str, value: str, field: Field[Any]) -> float:
    is_whole = field.type == "int"
    try:
        return int(value) if is_whole else float(value)
    except ValueError as error:
        raise ParameterError(f"{key} must be a {'whole ' if is_whole else ''}number, not {value!r}") from error
