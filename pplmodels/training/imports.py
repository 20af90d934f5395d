"""The classes of a user's own, from the file that ``--import`` names."""

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

USER_MODULE = "pplmodels_imported"  # the name of the module that --import makes of a file
NAMED_BY_RUN = True  # what --import without a file stands for
CHECKED = 32  # images on which a pair is tried
UNMOVED = "No step would move"  # begins the findings that only warn: a subclass may have no use for what it inherits
NUDGE = 1e-3  # deviation of what is added to the weights of the pair that is tried


def add_import(parser: argparse.ArgumentParser, help: str) -> None:
    """The option to run a file of the user's code, which only a command line can do: a run's folder never does."""
    parser.add_argument(
        "--import",
        dest="imports",
        nargs="?",
        const=NAMED_BY_RUN,
        metavar="FILE.py",
        help=f"your module: {help} (of a run that was trained with one: without FILE.py, that one)",
    )


def run_import(options: argparse.Namespace, run: Run | None = None) -> None:
    """Run the file of ``--import``, if there is one, so that the classes which it defines are known.

    ``options.imports`` then is its absolute path. ``run`` is the one to go on with or to measure: without a file, the
    option means the one that it was trained with. Raises :class:`InputError`, for a run with a file of which the
    options say nothing too.
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
    except Exception as error:  # of a user's code, any
        raise _told(error, path) from error


def user_classes(options: argparse.Namespace, *kinds: type) -> list[type]:
    """The pair's classes ``kinds``; in the place of each the subclass that the file of ``--import`` defines."""
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
    """The subclasses of ``kind`` that the user's file defines."""
    own = [
        value
        for value in vars(sys.modules[USER_MODULE]).values()
        if isinstance(value, type) and value.__module__ == USER_MODULE
    ]
    return [child for child in own if issubclass(child, kind)]


def checked(options: argparse.Namespace, build: Callable[[], Iterable[PairModule]], images: Images) -> nn.ModuleList:
    """The pair that ``build()`` returns, on the device of ``images``; it is tried on some if it has a user's classes.

    Raises :class:`InputError` if the pair cannot be built as the options say, where the user's code fails, or with
    what :func:`pplmodels.inspect.check_pair` finds; parameters that would stay as they are make a warning on stderr.
    The random generators are where ``build`` left them.
    """
    try:
        pair = nn.ModuleList(build()).to(images.pixels.device)
    except InputError:
        raise
    except Exception as error:  # of a user's code, any
        file = options.imports and Path(options.imports)
        if file and (isinstance(error, TypeError) or _lines(error, file)):  # arguments that the class does not take
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
    """What is wrong with the pair after a small move: that a flow begins as the identity, say, is no fault."""
    from pplmodels.inspect import check_pair  # pandas and xarray are slow to import

    try:
        moved = copy.deepcopy(pair)
        with torch.no_grad():
            for parameter in (p for p in moved.parameters() if p.requires_grad):
                parameter += NUDGE * torch.randn_like(parameter)
        return check_pair(*moved, x)
    except Exception as error:
        raise _told(error, file) from error


def _told(error: Exception, path: Path) -> InputError:
    """What went wrong in the user's file, and on which line of it."""
    text = error.msg if isinstance(error, SyntaxError) and error.filename == str(path) else str(error)
    lines = _lines(error, path)
    where = f"line {lines[-1]}" if lines else " or ".join(kind.__name__ for kind in _defined(PairModule))
    return InputError(f"{path}, {where}: {type(error).__name__}{': ' if text else ''}{text}")


def _lines(error: Exception, path: Path) -> list[int]:
    """The lines of the file on which the error came about, outermost first."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        lines.append(error.lineno)
    return lines
