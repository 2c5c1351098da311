"""Things that are chosen by name and may have parameters, as text: `NAME` or `NAME:key=value,key=value`.

Where searches are known, `key=search` leaves a value to one.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

SEARCH = "search"
"""In place of a value: a search finds it, within the range of `Parametrised.search_space`."""


class ParameterError(ValueError):
    """A name that there is not, a parameter that it does not have, or a value out of its range; the message says what there is."""


@dataclass(frozen=True)
class Parametrised(ABC):
    """A frozen dataclass with a name, whose fields are numbers with defaults: its parameters."""

    name: ClassVar[str]

    @property
    def text(self) -> str:
        """As the command line takes it, every parameter named: `ties:share=0.2`."""
        return self.text_searching(())

    def text_searching(self, searched: Collection[str]) -> str:
        """The same with `search` for the values of some parameters: `ties:share=search`."""
        values = {field.name: SEARCH if field.name in searched else repr(getattr(self, field.name)) for field in fields(self)}
        return f"{self.name}:{','.join(f'{name}={value}' for name, value in values.items())}" if values else self.name

    def search_space(self) -> Mapping[str, tuple[float, float]]:
        """The parameters that a search may vary -> the two ends of their range, both allowed."""
        return {}

    def check_searched(self, names: Collection[str]) -> None:
        """Raises ParameterError for a name that is no parameter, or one that has no range to be searched in."""
        self.with_parameters({name: getattr(self, name, 0.0) for name in names})
        known = self.search_space()
        for name in names:
            if name not in known:
                others = f"what a search may vary of it is {', '.join(known)}" if known else "a search varies nothing of it"
                raise ParameterError(f"{name} of {self.name} is not searched: {others}; give {name} a value")

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
    found, given = _read(text, table, what)
    return _with_values(found, given)


def parse_searched(text: str, table: Mapping[str, P], what: str) -> tuple[P, tuple[str, ...]]:
    """The same, and the parameters that are to be searched, which keep their defaults: those with `search` in place of a value."""
    found, given = _read(text, table, what)
    searched = tuple(key for key, value in given.items() if value == SEARCH)
    found.check_searched(searched)
    return _with_values(found, {key: value for key, value in given.items() if value != SEARCH}), searched


def _read(text: str, table: Mapping[str, P], what: str) -> tuple[P, dict[str, str]]:
    """The entry, and the values that the text gives for its parameters, unread."""
    name, colon, given = text.partition(":")
    if name not in table:
        raise ParameterError(f"unknown {what} {name!r}: choose among {', '.join(table)}")
    found = table[name]
    values: dict[str, str] = {}
    for part in given.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise ParameterError(f"{text!r} gives no value for {key!r}: write {_form(found)}")
        if key in values:
            raise ParameterError(f"{text!r} gives {key} twice: give one value")
        values[key] = value
    return found, values


def _with_values(found: P, given: Mapping[str, str]) -> P:
    by_name = {field.name: field for field in fields(found)}
    unknown = dict.fromkeys(given.keys() - by_name.keys(), 0.0)  # refused, with the names there are
    return found.with_parameters(unknown | {key: _number(key, value, by_name[key]) for key, value in given.items() if key in by_name})


def _form(found: Parametrised) -> str:
    known = ",".join(f"{field.name}=VALUE" for field in fields(found))
    return f"{found.name}:{known}" if known else f"{found.name}, which has no parameters"


def _number(key: str, value: str, field: Field[Any]) -> float:
    is_whole = field.type == "int"
    try:
        return int(value) if is_whole else float(value)
    except ValueError as error:
        raise ParameterError(f"{key} must be a {'whole ' if is_whole else ''}number, not {value!r}") from error
