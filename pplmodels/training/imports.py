"""User-defined classes from the file given by ``--import``."""

import argparse
import copy
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from pplmodels import distributed
from pplmodels.data import Images
from pplmodels.errors import InputError
from pplmodels.module import PairModule
from pplmodels.rng import fork_rng
from pplmodels.training.run import Run

USER_MODULE = "pplmodels_imported"  # the name of the module that is loaded from the file
NAMED_BY_RUN = True  # the value of --import without a file
CHECKED = 32  # number of images used to check a pair
UNMOVED = "No step would move"  # prefix of findings that only warn: a subclass may not use all inherited parameters
NUDGE = 1e-3  # standard deviation of the perturbation of the checked pair's weights


def add_import(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the option that executes a file of user code. Only the command line can do this, never a run folder."""
    parser.add_argument(
        "--import",
        dest="imports",
        nargs="?",
        const=NAMED_BY_RUN,
        metavar="FILE.py",
        help=f"your module: {help} (without FILE.py: the module that the run was trained with)",
    )


def run_import(options: argparse.Namespace, run: Run | None = None) -> None:
    """Execute the file given by ``--import``, if any, so that the classes it defines are available.

    Sets ``options.imports`` to its absolute path. ``run`` is the run to continue or to evaluate; ``--import`` without
    a file selects the file that ``run`` was trained with. Raises :class:`InputError` if this fails, or if ``run`` was
    trained with a file and ``--import`` is missing.
    """
    stored = None if run is None else run.config.get("imports")
    if options.imports is None:
        if stored:
            raise InputError(
                f"{run.folder} was trained with --import {stored}: give --import, which runs that file, or "
                "--import FILE.py if it is elsewhere now."
            )
        return
    if options.imports is NAMED_BY_RUN:
        if not isinstance(stored, str):
            raise InputError("--import: which file? Only a run that was trained with one names it.")
        options.imports = stored
        if distributed.rank() == 0:
            print(f"importing {Path(stored).absolute()}, which {run.folder} names", file=sys.stderr)
    path = Path(options.imports).absolute()
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"--import {options.imports}: there is no such .py file.")
    options.imports = str(path)
    spec = importlib.util.spec_from_file_location(USER_MODULE, path)
    sys.modules[USER_MODULE] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code can raise anything
        raise _told(error, path) from error


def user_classes(options: argparse.Namespace, *kinds: type) -> list[type]:
    """The pair's classes ``kinds``, each replaced by its subclass in the file given by ``--import``, if any."""
    if options.imports is None:
        return list(kinds)
    chosen = []
    for kind in kinds:
        found = _defined(kind)
        last = [child for child in found if not any(other is not child and issubclass(other, child) for other in found)]
        if len(last) > 1:
            names = " or ".join(child.__name__ for child in last)
            raise InputError(f"--import {options.imports}: which {kind.__name__} is meant, {names}? Leave one of them.")
        chosen += last or [kind]
    if chosen == list(kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"--import {options.imports}: there is no subclass of {names} in it.")
    return chosen


def _defined(kind: type) -> list[type]:
    """The subclasses of ``kind`` defined in the user's file."""
    own = [
        value
        for value in vars(sys.modules[USER_MODULE]).values()
        if isinstance(value, type) and value.__module__ == USER_MODULE
    ]
    return [child for child in own if issubclass(child, kind)]


def checked(options: argparse.Namespace, build: Callable[[], Iterable[PairModule]], images: Images) -> nn.ModuleList:
    """The pair returned by ``build()``, on the device of ``images``. Pairs with user-defined classes are checked.

    Raises :class:`InputError` if the pair cannot be built with these options, if the user's code fails, or if
    :func:`pplmodels.inspect.check_pair` finds a problem. Parameters without a gradient only cause a warning on
    stderr. The check does not change the state of the random generators.
    """
    try:
        pair = nn.ModuleList(build()).to(images.pixels.device)
    except InputError:
        raise
    except Exception as error:  # user code can raise anything
        file = options.imports and Path(options.imports)
        if file and (isinstance(error, TypeError) or _lines(error, file)):  # or wrong arguments
            raise _told(error, file) from error
        if isinstance(error, ValueError):
            raise InputError(f"{error}.") from error
        raise
    if options.imports is not None:
        with fork_rng():
            findings = _findings(pair, images.head(CHECKED)[:], Path(options.imports))
        told = f"{options.imports}: {' '.join(findings)}"
        if not all(finding.startswith(UNMOVED) for finding in findings):
            raise InputError(told)
        if findings and distributed.rank() == 0:
            print(f"warning: {told}", file=sys.stderr)
    return pair


def _findings(pair: nn.ModuleList, x: Tensor, file: Path) -> list[str]:
    """Problems of the pair after a small perturbation, so that e.g. a flow that starts as the identity passes."""
    from pplmodels.inspect import check_pair  # imported late, because pandas and xarray are slow to import

    try:
        moved = copy.deepcopy(pair)
        with torch.no_grad():
            for parameter in (p for p in moved.parameters() if p.requires_grad):
                parameter += NUDGE * torch.randn_like(parameter)
        return check_pair(*moved, x)
    except Exception as error:
        raise _told(error, file) from error


def _told(error: Exception, path: Path) -> InputError:
    """The error in the user's file and its line."""
    text = error.msg if isinstance(error, SyntaxError) and error.filename == str(path) else str(error)
    lines = _lines(error, path)
    where = f"line {lines[-1]}" if lines else " or ".join(kind.__name__ for kind in _defined(PairModule))
    return InputError(f"{path}, {where}: {type(error).__name__}{': ' if text else ''}{text}")


def _lines(error: Exception, path: Path) -> list[int]:
    """The line numbers of the file in the error's traceback, outermost first."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        lines.append(error.lineno)
    return lines
