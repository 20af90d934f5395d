"""All systems of the installed packages by name, and the training of one from the command line."""

import sys
from collections.abc import Sequence
from functools import cache

from pplmodels.errors import InputError
from pplmodels.registry import system_modules
from pplmodels.systems.command_line import parse
from pplmodels.systems.system import System
from pplmodels.training import Run


@cache
def all_systems() -> dict[str, System]:
    """The systems of all installed packages by name: the instances of :class:`System` in their modules.

    Raises ValueError if two systems have the same name.
    """
    found: dict[str, System] = {}
    for module in system_modules():
        for system in vars(module).values():
            if isinstance(system, System) and found.setdefault(system.name, system) is not system:
                other = type(found[system.name])
                raise ValueError(
                    f"two systems are named {system.name!r}: a {other.__qualname__} of {other.__module__}, "
                    f"and a {type(system).__qualname__} of {type(system).__module__}."
                )
    return dict(sorted(found.items()))


def find_system(name: str) -> System:
    """The system of this name. Raises :class:`pplmodels.errors.InputError`."""
    systems = all_systems()
    if name not in systems:
        raise InputError(f"there is no system {name!r}: choose {', '.join(systems)}.")
    return systems[name]


def train(name: str, argv: Sequence[str] | None = None) -> Run:
    """Train the system of this name as the words of the command line say; returns its run."""
    system = find_system(name)
    return system.train(*parse(system, argv))


def main(argv: Sequence[str] | None = None) -> None:
    """Train the system that the first word of the command line names, with the options in the other words."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: train.py NAME [OPTIONS]\n\nsystems (train.py NAME --help lists the options of each):")
        print("\n".join(f"  {name:<14}{system.description}" for name, system in all_systems().items()))
        sys.exit(0)
    train(name, words)
