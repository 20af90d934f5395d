"""User-defined classes from the file given by ``--import``."""

import copy
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pplmodels import distributed
from pplmodels.data import Images
from pplmodels.errors import InputError
from pplmodels.module import PairModule
from pplmodels.rng import fork_rng
from pplmodels.training.run import Run

USER_MODULE = "pplmodels_imported"  # the name of the module that is loaded from the file
CHECKED = 32  # number of images used to check a pair
UNMOVED = "Training would not change"  # prefix of findings that only warn: a subclass may not use all parameters
NUDGE = 1e-3  # standard deviation of the perturbation of the checked pair's weights


def run_import(given: str | Literal[True] | None, run: Run | None = None) -> str | None:
    """Execute the file given by ``--import``, if any, so that the classes it defines are available.

    Returns its absolute path. Only the command line can select the file, never a run folder. ``run`` is the run to
    continue or to evaluate; ``--import`` without a file (True) selects the file that ``run`` was trained with. Raises
    :class:`InputError` if this fails, or if ``run`` was trained with a file and ``--import`` is missing.
    """
    stored = None if run is None else run.config.get("imports")
    if given is None:
        if run is not None and stored:
            raise InputError(
                f"{run.folder} was trained with --import {stored}: pass --import to execute that file, "
                "or --import FILE.py if it has moved."
            )
        return None
    if given is True:
        if run is None or not isinstance(stored, str):
            raise InputError("--import needs a file, unless the run was trained with one.")
        given = stored
        if distributed.rank() == 0:
            print(f"importing {Path(stored).absolute()}, which {run.folder} was trained with", file=sys.stderr)
    path = Path(given).absolute()
    spec = importlib.util.spec_from_file_location(USER_MODULE, path)
    if path.suffix != ".py" or not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"--import {given} is not an existing .py file.")
    sys.modules[USER_MODULE] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code can raise anything
        raise _error_in_file(error, path) from error
    return str(path)


def user_classes(path: str | None, classes: Sequence[type]) -> list[type]:
    """The pair's ``classes``, each replaced by its subclass in the file given by ``--import``, if any."""
    if path is None:
        return list(classes)
    chosen = []
    for kind in classes:
        found = _subclasses_in_file(kind)
        last = [child for child in found if not any(other is not child and issubclass(other, child) for other in found)]
        if len(last) > 1:
            names = " and ".join(child.__name__ for child in last)
            raise InputError(
                f"--import {path} is ambiguous: {names} are subclasses of {kind.__name__}, but only one is allowed."
            )
        chosen += last or [kind]
    if chosen == list(classes):
        names = " or ".join(kind.__name__ for kind in classes)
        raise InputError(f"--import {path} defines no subclass of {names}.")
    return chosen


def _subclasses_in_file(kind: type) -> list[type]:
    """The subclasses of ``kind`` defined in the user's file."""
    own = [
        value
        for value in vars(sys.modules[USER_MODULE]).values()
        if isinstance(value, type) and value.__module__ == USER_MODULE
    ]
    return [child for child in own if issubclass(child, kind)]


def check(path: str | None, build: Callable[[], Iterable[PairModule]], images: Images) -> None:
    """Check that a pair can be built by ``build()`` and, if it has classes of the user's file, that it is sound.

    Raises :class:`InputError` if the pair cannot be built, if the user's code fails, or if
    :func:`pplmodels.inspect.check_pair` finds a problem. Parameters without a gradient only cause a warning on
    stderr. The check does not change the state of the random generators.
    """
    with fork_rng():
        _check(None if path is None else Path(path), build, images)


def _check(file: Path | None, build: Callable[[], Iterable[PairModule]], images: Images) -> None:
    try:
        pair = nn.ModuleList(build()).to(images.pixels.device)
    except InputError:
        raise
    except Exception as error:  # user code can raise anything
        if file and (isinstance(error, TypeError) or _line_numbers(error, file)):  # or wrong arguments
            raise _error_in_file(error, file) from error
        if isinstance(error, ValueError):
            raise InputError(f"{error}.") from error
        raise
    if file is not None:
        findings = _findings(pair, images.head(CHECKED)[:], file)
        message = f"{file}: {' '.join(findings)}"
        if not all(finding.startswith(UNMOVED) for finding in findings):
            raise InputError(message)
        if findings and distributed.rank() == 0:
            print(f"warning: {message}", file=sys.stderr)


def _findings(pair: nn.ModuleList, x: Tensor, file: Path) -> list[str]:
    """Problems of the pair after a small perturbation, so that e.g. a flow that starts as the identity passes."""
    from pplmodels.inspect import check_pair  # imported late, because pandas and xarray are slow to import

    try:
        moved = copy.deepcopy(pair)
        with torch.no_grad():
            for parameter in (p for p in moved.parameters() if p.requires_grad):
                parameter.add_(NUDGE * torch.randn_like(parameter))
        model, guide = moved
        return check_pair(model, guide, x)
    except Exception as error:
        raise _error_in_file(error, file) from error


def _error_in_file(error: Exception, path: Path) -> InputError:
    """The error in the user's file and its line."""
    text = error.msg if isinstance(error, SyntaxError) and error.filename == str(path) else str(error)
    lines = _line_numbers(error, path)
    where = f"line {lines[-1]}" if lines else " or ".join(kind.__name__ for kind in _subclasses_in_file(PairModule))
    return InputError(f"{path}, {where}: {type(error).__name__}{': ' if text else ''}{text}")


def _line_numbers(error: Exception, path: Path) -> list[int]:
    """The line numbers of the file in the error's traceback, outermost first."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        lines.append(error.lineno)
    return lines
