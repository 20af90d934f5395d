"""Tracing a program into a flat graph of tensor operations once, and replaying that."""

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pplmodels.infer.graph import simplified
from pplmodels.infer.state import Snapshot, modules_of, state_of

MANY = 16  # graphs kept, and traces after which one is told that tracing keeps happening
SCALARS = (bool, int, float, str, type(None))


class CannotCompile(RuntimeError):
    """A program whose operations depend on values; the message names the line or the difference."""


class Replay:
    """A program that runs as a flat graph after its first call with given shapes.

    ``program(*args)`` may use Pyro, autograd and modules; it returns tensors, and values that the signature fixes, in
    any nesting. The first call with a new *signature* runs it under
    :func:`torch.fx.experimental.proxy_tensor.make_fx`, which records every tensor operation, those of autograd
    included; from then on the operations run by themselves, without Python modules, Pyro, provenance or autograd.
    Parameters, buffers and tensor arguments are the graph's inputs, read anew at each call; random operations draw from
    the global generators, in the order of the program; in-place changes of buffers are operations like others.

    The signature holds whatever would change the graph: shape, dtype and device of every tensor argument, parameter
    and buffer; the value of every other argument; which parameters are frozen; for every module its identity,
    its train/eval mode and its plain attributes (numbers, strings, tuples of them). A change makes a new graph.

    Each new graph is run once against the program itself, from the same state and under another seed than it was
    traced with, so that a value which was baked in shows. What differs, or cannot be traced, raises
    :class:`CannotCompile`; with ``fallback`` the program then runs as it is, after one warning.

    Arguments:
        program: what to replay.
        modules: the modules whose parameters and buffers it reads, or callables that hold them.
        tensors: further tensors that it reads, such as an optimizer's parameters.
        fallback: run the program itself where it cannot be compiled.
        tolerance: by which graph and program may differ, of the largest entry (sums are taken in another order);
            None for what float32 and float64 round.
    """

    def __init__(
        self, program: Callable, modules=(), tensors=(), fallback: bool = False, tolerance: float | None = None
    ):
        self.program = program
        self.tensors = tuple(tensors)
        self.fallback, self.tolerance = fallback, tolerance
        self.roots = tuple(modules)
        self.graphs: dict[tuple, _Graph | None] = {}
        self.traces = 0
        self._last_signature: tuple | None = None

    def __call__(self, *args):
        """The program's result for ``args``, detached; on CUDA it is overwritten by the next call."""
        leaves, spec = tree_flatten(args)
        modules = modules_of(self.roots)
        state = state_of(modules, self.tensors)
        signature = self._signature(leaves, spec, state, modules)
        if signature not in self.graphs:
            self._tell_why(signature)
            if len(self.graphs) >= MANY:
                self.graphs.pop(next(iter(self.graphs)))
            self.graphs[signature] = self._trace(args, leaves, state)
        graph = self.graphs[signature]
        return self.program(*args) if graph is None else graph(leaves, state)

    def _signature(self, leaves: list, spec, state: list[Tensor], modules: list[nn.Module]) -> tuple:
        return (
            ("arguments", repr(spec), *map(_kind, leaves)),
            # a CUDA graph holds addresses: a tensor that has moved makes a new one
            ("parameters and buffers", *((_kind(t), t.data_ptr() if t.is_cuda else 0) for t in state)),
            ("modules", *map(_mode, modules)),
            ("settings", torch.get_default_dtype(), torch.is_autocast_enabled()),
        )

    def _tell_why(self, signature: tuple) -> None:
        """After many traces, name the part of the signature that keeps changing."""
        self.traces += 1
        if self.traces > MANY:
            changed = [new[0] for new, old in zip(signature, self._last_signature, strict=True) if new != old]
            warnings.warn(
                f"this program has been traced {self.traces} times, now because of its {' and '.join(changed)}: "
                "keep their shapes and plain values the same from call to call, and pass what varies as tensors.",
                stacklevel=4,
            )
        self._last_signature = signature

    def _trace(self, args: tuple, leaves: list, state: list[Tensor]) -> "_Graph | None":
        before = Snapshot(state)
        try:
            graph = _Graph(self.program, args, leaves, state)
            before.restore()
            _check(graph, self.program, args, leaves, state, self.tolerance)
            if all(tensor.is_cuda for tensor in (*state, *graph._inputs(leaves))):
                graph.capture(leaves, state)
        except CannotCompile as error:
            if not self.fallback:
                raise
            warnings.warn(f"{error} It runs uncompiled.", stacklevel=4)
            return None
        finally:
            before.restore()
        return graph


class _Graph:
    """One traced graph, called with the arguments' leaves and the state."""

    def __init__(self, program: Callable, args: tuple, leaves: list, state: list[Tensor]):
        self.is_input = [isinstance(leaf, Tensor) for leaf in leaves]
        self.spec = None

        def flat(*inputs):  # the very tensors that the program will meet: make_fx knows them by identity
            with _RefuseDataDependentShapes():
                results, self.spec = tree_flatten(program(*args))
            self.constants = [None if isinstance(result, Tensor) else result for result in results]
            return [result.detach() if isinstance(result, Tensor) else None for result in results]

        try:
            with _without_onednn():
                module = make_fx(flat)(*state, *self._inputs(leaves))
        except Exception as error:
            raise CannotCompile(_explain(error)) from error
        self.run = simplified(module).forward
        self.captured: torch.cuda.CUDAGraph | None = None

    def _inputs(self, leaves: list) -> list[Tensor]:
        return [leaf for leaf, is_input in zip(leaves, self.is_input, strict=True) if is_input]

    @torch.no_grad()
    def capture(self, leaves: list, state: list[Tensor]) -> None:
        """Record the graph's kernels as one CUDA graph, with fixed buffers for arguments and results."""
        self.buffers = [tensor.clone() for tensor in self._inputs(leaves)]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up outside the capture
            self.run(*state, *self.buffers)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            self.results = self.run(*state, *self.buffers)
        self.captured = captured

    @torch.no_grad()
    def __call__(self, leaves: list, state: list[Tensor]):
        if self.captured is None:
            results = self.run(*state, *self._inputs(leaves))
        else:
            torch._foreach_copy_(self.buffers, self._inputs(leaves))
            self.captured.replay()
            results = self.results
        results = [fixed if result is None else result for result, fixed in zip(results, self.constants, strict=True)]
        return tree_unflatten(results, self.spec)


def _check(
    graph: _Graph, program: Callable, args: tuple, leaves: list, state: list[Tensor], tolerance: float | None
) -> None:
    """Compare graph and program from the same state under one seed, which is not the one of the trace."""
    start = Snapshot(state)
    outcomes = []
    for run in (lambda: program(*args), lambda: graph(leaves, state)):
        torch.manual_seed(torch.initial_seed() + 1)
        results, _ = tree_flatten(run())
        buffers = [tensor.detach().clone() for tensor in state]
        outcomes.append([*results, *buffers])
        start.restore()
    for expected, got in zip(*outcomes, strict=True):
        if isinstance(expected, Tensor) and not _close(got, expected, tolerance):
            raise CannotCompile(
                "the replayed step differs from the program's own under the same seed: a value was baked in while "
                "tracing, or a random choice decides which sites there are."
            )


def _close(got: Tensor | None, expected: Tensor, tolerance: float | None) -> bool:
    """Equal up to the rounding of sums taken in another order, measured against the largest entry."""
    if got is None or got.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    scale = expected.detach().abs().amax() if expected.numel() else 0
    tolerance = tolerance or (1e-9 if expected.dtype == torch.float64 else 1e-3)
    return bool(
        torch.isclose(got, expected.detach(), rtol=tolerance, atol=tolerance * float(scale), equal_nan=True).all()
    )


class _RefuseDataDependentShapes(TorchDispatchMode):
    """Raises where a result's shape depends on values: the graph would keep the shape of the trace."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        index_is_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        varies = torch.Tag.dynamic_output_shape in func.tags and func is not torch.ops.aten.index.Tensor
        if index_is_mask or varies:
            raise CannotCompile(f"the shape of a result of {func.name()} depends on values")
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Trace recurrent layers as their parts: oneDNN's fused ones hand their backward pass what cannot be traced.

    (``torch.backends.mkldnn.flags`` sets more than this, and warns about it.)
    """
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def _explain(error: Exception) -> str:
    """One sentence with the reason and the innermost line that is neither torch's nor Pyro's."""
    cause = str(error).splitlines()[0] if isinstance(error, CannotCompile) else _reason(error)
    libraries = (torch.__path__[0], pyro.__path__[0], str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(libraries)]
    line = f' in {frames[-1].filename}, line {frames[-1].lineno} ("{frames[-1].line}")' if frames else ""
    return f"this step cannot be compiled: {cause}{line}."


def _reason(error: Exception) -> str:
    if "_local_scalar_dense" in str(error) or "data-dependent" in str(error):
        return "a Python value is taken from a tensor (control flow on a sampled value, .item() or float())"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _kind(leaf) -> tuple:
    """What of an argument, parameter or buffer would change the graph."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
    return type(leaf), leaf


def _mode(module: nn.Module) -> tuple:
    plain = tuple(
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, SCALARS) or (isinstance(value, tuple) and all(isinstance(v, SCALARS) for v in value))
    )
    return id(module), *plain
