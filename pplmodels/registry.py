"""Installed packages with pairs and systems, and loading pairs by the names of their classes."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from pplmodels.errors import InputError
from pplmodels.io import PAIR, named_in_utf8, newest_run
from pplmodels.module import PairModule, description_of, files_of

SYSTEMS = "pplmodels.systems"  # entry-point group of modules, or packages of modules, with systems


def load_pair(folder: str | Path) -> tuple[PairModule, PairModule]:
    """Load the model and the guide saved in ``folder``, of any classes, on the CPU and in evaluation mode.

    Classes are found by their names, so that files cannot select code to execute. Installed packages with an entry
    point in the group :data:`SYSTEMS` are imported for this; your own classes must already be imported. If the guide's
    constructor has an argument ``model``, it is given the model. For a folder of runs, the newest run that holds a
    pair is loaded, and its path is printed to stderr.
    """
    list(system_modules())
    with named_in_utf8(newest_run(folder, PAIR)) as folder:
        model = _class_of(folder, "model").from_pretrained(folder)
        guide = _class_of(folder, "guide")
        parts = {"model": model} if "model" in inspect.signature(guide).parameters else {}
        return model, guide.from_pretrained(folder, **parts)


def system_modules() -> Iterator[ModuleType]:
    """The modules of all entry points in the group :data:`SYSTEMS`: a package stands for the modules inside.

    A package that cannot be imported causes a warning, so that it does not disable all others.
    """
    for entry in entry_points(group=SYSTEMS):
        try:
            package = _import_installed(entry.module)
            inside = pkgutil.iter_modules(getattr(package, "__path__", ()))
            modules = [package, *(importlib.import_module(f"{package.__name__}.{found.name}") for found in inside)]
        except Exception as error:  # code of another package
            warnings.warn(f"{entry.module} cannot be imported ({type(error).__name__}: {error}).", stacklevel=2)
        else:
            yield from modules


def _import_installed(name: str) -> ModuleType:
    """Import an installed module, even if one of the same name in the working directory shadows its package."""
    top, _, rest = name.partition(".")
    installed, found = _installed(top), importlib.util.find_spec(top)
    if installed and (found is None or (found.origin != installed.origin and not _contains(found, rest))):
        top = f"_installed_{top}"
        if top not in sys.modules:
            places = installed.submodule_search_locations
            spec = importlib.util.spec_from_file_location(top, installed.origin, submodule_search_locations=places)
            if spec is None or spec.loader is None:
                raise ImportError(f"{name} is not a package of Python files", name=name)
            sys.modules[top] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[top])
    return importlib.import_module(f"{top}.{rest}" if rest else top)


def _contains(package: ModuleSpec, name: str) -> bool:
    """Whether a package, such as another checkout of the installed one, has a submodule of this name."""
    places = package.submodule_search_locations
    return bool(name and places and PathFinder.find_spec(f"{package.name}.{name}", places))


def _installed(name: str) -> ModuleSpec | None:
    """The spec of a package, found without the working directory that Python puts on the path."""
    path = sys.path.copy()
    here = [place for place in path if Path(place).resolve() == Path.cwd()]
    for place in here[:1]:  # what ``python`` itself puts there
        sys.path.remove(place)
    try:
        specs = (finder.find_spec(name, None) for finder in sys.meta_path)
        return next((spec for spec in specs if spec is not None), None)
    finally:
        sys.path[:] = path


def _class_of(folder: str | Path, role: str) -> type[PairModule]:
    name, _ = description_of(folder, role)
    waiting = list(PairModule.__subclasses__())
    while waiting:
        kind = waiting.pop()
        if kind.__name__ == name and getattr(kind, "role", None) == role:
            return kind
        waiting += kind.__subclasses__()
    raise InputError(f"{files_of(folder, role)[0]} describes a {name}, which is not defined: import its module first.")
