"""Typed, frozen options that are given on the command line or in a file.

An option is a field of an :class:`OptionModel`. Its type says which values are valid, and an :class:`Option` in the
type's annotation says how it appears on the command line. pydantic checks the values, whether they are words of the
command line or come from an untrusted JSON or YAML file; argparse only splits the command line into words.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictBool, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import Self

from pplmodels.errors import InputError
from pplmodels.rng import LARGEST_SEED


class _WrongValue(ValueError, argparse.ArgumentTypeError):
    """A value that is not valid for an option, for pydantic and for argparse."""


def positive_int(value: object) -> int:
    """An integer of at least 1."""
    return _number(value, int, 1, "a positive integer")


def nonnegative_int(value: object) -> int:
    """An integer of at least 0."""
    return _number(value, int, 0, "a non-negative integer")


def seed(value: object) -> int:
    """An integer from 0 to 2^63."""
    return _number(value, int, 0, "an integer from 0 to 2^63", most=LARGEST_SEED)


def odd_int(value: object) -> int:
    """An odd integer of at least 3."""
    number = _number(value, int, 3, "an odd integer of at least 3")
    if number % 2 == 0:
        raise _WrongValue(f"{value!r} is not an odd integer of at least 3")
    return number


def positive_float(value: object) -> float:
    """A number above 0."""
    return _number(value, float, sys.float_info.min, "a positive number")


def finite_float(value: object) -> float:
    """A finite number."""
    return _number(value, float, -sys.float_info.max, "a finite number")


def fraction(value: object) -> float:
    """A number from 0 to 1."""
    return _number(value, float, 0, "a number from 0 to 1", most=1)


def _number(value: object, kind: Callable, least: float, wanted: str, most: float = sys.float_info.max):
    """The number that ``value`` is or, if it is text, spells."""
    try:
        number = kind(value if isinstance(value, str) else str(value))
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        raise _WrongValue(f"{value!r} is not {wanted}")
    return number


PositiveInt = Annotated[int, BeforeValidator(positive_int)]
NonnegativeInt = Annotated[int, BeforeValidator(nonnegative_int)]
Seed = Annotated[int, BeforeValidator(seed)]
OddInt = Annotated[int, BeforeValidator(odd_int)]
PositiveFloat = Annotated[float, BeforeValidator(positive_float)]
FiniteFloat = Annotated[float, BeforeValidator(finite_float)]
Fraction = Annotated[float, BeforeValidator(fraction)]
Switch = StrictBool  # on or off; text is not accepted


def one_of(names: Sequence[str] | Mapping[str, object]) -> AfterValidator:
    """A validator for text that must be one of ``names``, which are known only when the program runs."""

    def check(value: str) -> str:
        if value not in names:
            raise _WrongValue(f"{value!r} is not one of {', '.join(names)}")
        return value

    return AfterValidator(check)


@dataclass(frozen=True)
class Option:
    """How a field of an :class:`OptionModel` appears on the command line, and how long its value holds.

    Arguments:
        help: the text of ``--help``; the default is appended.
        group: the title under which ``--help`` lists the option.
        metavar: the placeholder of the value; a tuple for an option with several values.
        scope: "run" for an option that a run keeps to its end; "data" if it describes the data and "once" if it is
            about a single run, which other runs do not inherit; "process" for an option that does not affect the
            results and may change when a run is resumed.
        flag: the name on the command line (default: ``--`` and the field's name), or "" for a positional argument.
        choices: the valid values, for a field whose type does not list them.
        const: the value of the option without an argument, if it may have none.
    """

    help: str
    group: str = "options"
    metavar: str | tuple[str, ...] | None = None
    scope: Literal["run", "data", "once", "process"] = "run"
    flag: str | None = None
    choices: Sequence[str] | None = None
    const: object = None


class InvalidOptionError(InputError):
    """A value of an option is not valid. ``flag`` is the option on the command line and ``value`` the refused value."""

    def __init__(self, flag: str, value: object, reason: str):
        super().__init__(f"{flag}: {reason}" if flag else reason)
        self.flag, self.value = flag, value


class OptionModel(BaseModel):
    """A frozen set of options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """The options with these values, and defaults for the others. Raises :class:`InvalidOptionError`."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as invalid:
            # Of an optional field, the error that it is not None comes last and says nothing.
            error = invalid.errors()[0]
            name = str(error["loc"][0]) if error["loc"] else ""
            if error["type"] == "extra_forbidden":
                raise InvalidOptionError("", error["input"], f"unknown option {name!r}.") from invalid
            value, cause = error["input"], error.get("ctx", {}).get("error")
            reason = str(cause) if cause else f"{value!r} is not valid: {error['msg'].lower()}"
            raise InvalidOptionError(cls.flag(name) if name else "", value, reason) from invalid

    @classmethod
    def option(cls, name: str) -> Option:
        """The :class:`Option` of a field."""
        return next(found for found in cls.model_fields[name].metadata if isinstance(found, Option))

    @classmethod
    def flag(cls, name: str) -> str:
        """The option of a field on the command line."""
        flag = cls.option(name).flag
        return "--" + name.replace("_", "-") if flag is None else flag or name

    @classmethod
    def names(cls, *scopes: str) -> list[str]:
        """The names of the fields with one of these scopes."""
        return [name for name in cls.model_fields if cls.option(name).scope in scopes]

    def plain(self) -> dict[str, Any]:
        """The values as JSON has them, by field."""
        return self.model_dump(mode="json")

    def replaced(self, **values: object) -> Self:
        """The same options with other values, which are not checked."""
        return self.model_copy(update=values)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one sentence, with exit code 2."""

    def error(self, message: str):
        """Print the error and exit."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser_of(options: type[OptionModel], description: str) -> Parser:
    """A parser whose result holds the given options only, as words; :meth:`OptionModel.of` checks them."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    groups: dict[str, argparse._ActionsContainer] = {"options": parser}
    for name, field in options.model_fields.items():
        option = options.option(name)
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        shape = _shape_of(field, option)
        if option.flag == "":
            groups[option.group].add_argument(name, **shape)
        else:
            groups[option.group].add_argument(options.flag(name), dest=name, **shape)
    return parser


def _shape_of(field: FieldInfo, option: Option) -> dict[str, Any]:
    """The arguments of ``add_argument`` for a field."""
    default = field.get_default()
    help = option.help
    if default is not None and default is not False and not field.is_required() and field.default_factory is None:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        help += f" (default: {shown})"
    kind = _without_none(field.annotation)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction if default else "store_true", "help": help}
    shape: dict[str, Any] = {"help": help, "metavar": option.metavar}
    if get_origin(kind) is tuple:
        sizes = get_args(kind)
        shape["nargs"] = "+" if sizes[-1] is Ellipsis else len(sizes)
    choices = get_args(kind) if get_origin(kind) is Literal else option.choices
    if choices:
        shape["choices"] = list(choices)
    if option.const is not None:
        shape |= {"nargs": "?", "const": option.const}
    if option.flag == "":
        return shape if field.is_required() else {**shape, "nargs": "?"}
    if field.is_required():
        shape["required"] = True
    return shape


def _without_none(annotation) -> Any:
    """The type of a field without ``None`` and without annotations."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def read_options(path: str | Path) -> dict[str, object]:
    """The values in a JSON or YAML file, by option. Raises :class:`InputError`."""
    otherwise = f"{path} is not a JSON or YAML file with one value for each option."
    try:
        found = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(otherwise) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(otherwise)
    return {name.replace("-", "_"): value for name, value in found.items()}
