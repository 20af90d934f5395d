"""Detection and explanation of program behavior that cannot be traced."""

import contextlib
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pplmodels.infer.compile.passes import LIFTS, written_arguments
from pplmodels.infer.compile.state import unconstrained

aten = torch.ops.aten
TO_HOST = {"numpy", "__array__", "tolist", "__dlpack__"}
TO_CONSTANT = {"tensor", "as_tensor", "asarray", "new_tensor"}
STDLIB = str(Path(contextlib.__file__).parent) + os.sep
LIBRARIES = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, pyro.__file__, np.__file__, __file__))
PYTHON_VALUE = "a tensor is converted to a Python value (by control flow on a sampled value, .item() or float())"


class CompileError(RuntimeError):
    """A program cannot be compiled. The message gives the reason and the line or the difference."""


def refusal(reason: str) -> CompileError:
    """The error for a step that cannot be compiled."""
    return CompileError(f"this step cannot be compiled: {reason}.")


@contextmanager
def refusing(inputs: list[Tensor]) -> Iterator[None]:
    """Inside this context, operations that a graph with these ``inputs`` cannot replay raise :class:`CompileError`."""
    fixed = _Fixed()
    with ExitStack() as stack:
        stack.enter_context(_RefuseStoredParameters(inputs))
        stack.enter_context(_RefuseHostReads(fixed))
        stack.enter_context(_RefuseDependenceOnValues(fixed))
        stack.enter_context(_without_onednn())
        yield


@contextmanager
def modules_that_run() -> Iterator[list[nn.Module]]:
    """Collects all modules that are called inside this context."""
    found: dict[int, nn.Module] = {}
    ran: list[nn.Module] = []

    def note(module: nn.Module, _) -> None:
        found[id(module)] = module

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield ran
    finally:
        hook.remove()
        ran += found.values()


def explained(error: Exception, what: str = "") -> CompileError:
    """An error of one sentence with the reason and the innermost line outside of torch and Pyro."""
    cause = str(error).splitlines()[0] if isinstance(error, CompileError) else _reason(error)
    cause = f"{what} ({cause})" if what else cause
    return refusal(cause + _place(traceback.extract_tb(error.__traceback__)))


def line_that_draws(states: Callable[[], tuple], program: Callable, *args, **kwargs) -> str:
    """The user's line at which a run of a program changes the states of generators, as the end of a sentence."""
    start = states()
    lines: list[traceback.FrameSummary] = []  # the last line that was run
    places: list[str] = []

    def look(frame, event, _):
        if _is_library(frame.f_code.co_filename):
            return None
        if not places and lines and states() != start:
            places.append(_place([lines[-1]]))
        lines[:] = [traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)]
        return look

    sys.settrace(look)
    try:
        program(*args, **kwargs)
    finally:
        sys.settrace(None)
    return places[0] if places else ""


def _reason(error: Exception) -> str:
    if "_local_scalar_dense" in str(error) or "data-dependent" in str(error):
        return PYTHON_VALUE
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _place(frames) -> str:
    """The innermost line of user code, as the end of a sentence."""
    for frame in reversed(frames):
        if not _is_library(frame.filename) and linecache.getline(frame.filename, frame.lineno).strip():
            return f' in {frame.filename}, line {frame.lineno} ("{frame.line}")'
    return ""


def _is_library(file: str) -> bool:
    """Whether a file belongs to torch, Pyro, NumPy, Python or this engine."""
    return file.startswith(LIBRARIES) or (file.startswith(STDLIB) and "site-packages" not in file)


class _Fixed:
    """The set of tensors, by memory, whose values do not depend on inputs or random generators."""

    def __init__(self):
        self._memory: dict[int, Tensor] = {}

    def holds(self, tensors) -> bool:
        return all(t.untyped_storage()._cdata in self._memory for t in tensors)

    def add(self, tensors) -> None:
        self._memory |= {t.untyped_storage()._cdata: t for t in tensors}

    def remove(self, tensors) -> None:
        for tensor in tensors:
            self._memory.pop(tensor.untyped_storage()._cdata, None)


def _tensors(things) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(things) if isinstance(leaf, Tensor)]


class _RefuseDependenceOnValues(TorchDispatchMode):
    """Raises if Python code or the shape of a result depends on values that may differ between calls."""

    def __init__(self, fixed: _Fixed):
        super().__init__()
        self.fixed = fixed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        read = _tensors((args, kwargs))
        if func in LIFTS:  # a tensor created from Python numbers
            results = func(*args, **kwargs)
            self.fixed.add([results])
            return results
        fixed = self.fixed.holds(read) and torch.Tag.nondeterministic_seeded not in func.tags
        if not fixed:
            self._check(func, args)
        elif torch.Tag.data_dependent_output in func.tags:  # the same at every call
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        results = func(*args, **kwargs)
        if fixed:
            self.fixed.add(_tensors(results))
        elif func is aten._pack_padded_sequence.default:
            self.fixed.add([results[1]])  # batch sizes, which only depend on the lengths
        else:
            self.fixed.remove(_tensors(written_arguments(func, args, kwargs)))
        return results

    def _check(self, func, args: tuple) -> None:
        if torch.Tag.data_dependent_output in func.tags:
            raise CompileError(PYTHON_VALUE)
        index_is_mask = func is aten.index.Tensor and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        varies = torch.Tag.dynamic_output_shape in func.tags and func is not aten.index.Tensor
        if index_is_mask or varies:
            raise CompileError(f"the shape of a result of {func.name()} depends on the values of a tensor")
        if func is aten._pack_padded_sequence.default and not self.fixed.holds([args[1]]):
            raise CompileError(
                "the lengths of a packed sequence are read on the host; run the recurrent layer on the padded sequence "
                "and mask the padding (torch.where, poutine.mask)"
            )


class _RefuseHostReads(TorchFunctionMode):
    """Raises if values are read without the dispatcher's knowledge, because they would become constants."""

    def __init__(self, fixed: _Fixed):
        super().__init__()
        self.fixed = fixed

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in TO_HOST and isinstance(args[0], Tensor):
            if not self.fixed.holds([args[0]]):
                raise CompileError(
                    f".{name}() reads the values of a tensor, and results computed from them outside of torch would be "
                    "constants of the graph"
                )
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        data = kwargs.get("data", args[-1] if args else None)
        if name in TO_CONSTANT and (values := _tensors(data)):
            if isinstance(data, Tensor) and name in ("as_tensor", "asarray"):
                return func(*args, **kwargs)
            if not self.fixed.holds(values):
                raise CompileError(f"torch.{name}() copies the values of a tensor; use .clone() or torch.stack()")
        if name == "one_hot":
            return _one_hot(func, *args, **kwargs)
        return func(*args, **kwargs)


def _one_hot(func, index: Tensor, num_classes: int = -1) -> Tensor:
    """Equal to torch's ``one_hot``, which reads the largest and the smallest index back to the host."""
    if num_classes < 0:
        return func(index, num_classes)
    return (index.unsqueeze(-1) == torch.arange(num_classes, device=index.device)).long()


class _RefuseStoredParameters(Messenger):
    """Raises at a ``pyro.param`` whose value is only in Pyro's global store."""

    def __init__(self, inputs: list[Tensor]):
        super().__init__()
        self.known = {id(tensor) for tensor in inputs}

    def _pyro_post_param(self, msg) -> None:
        if id(unconstrained(msg["value"])) not in self.known:
            raise CompileError(
                f'pyro.param("{msg["name"]}") is in Pyro\'s global parameter store; make it a PyroParam or '
                "nn.Parameter of the module (for a baseline, use pplmodels.infer.NeuralBaseline or baseline_value)"
            )


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Disable oneDNN, so that recurrent layers are traced as their parts: the fused layers cannot be traced.

    (``torch.backends.mkldnn.flags`` also changes other settings, with a warning.)
    """
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)
