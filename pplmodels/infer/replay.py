"""Tracing a program into a flat graph of tensor operations once, and replaying that."""

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from pplmodels import ranks
from pplmodels.generators import generator_states
from pplmodels.infer.graph import simplified
from pplmodels.infer.state import Snapshot, State, kind_of
from pplmodels.infer.tracing import CannotCompile, explained, line_that_draws, modules_that_run, refusing

aten = torch.ops.aten
MANY = 16  # graphs kept, and traces after which one is told that tracing keeps happening
ARRAY = 64  # entries of an argument's NumPy array that may be part of a signature
HOOKS = {name: hooks for name, hooks in vars(nn.modules.module).items() if name.startswith("_global_")}


class Replay:
    """A program that runs as a flat graph after its first call with given shapes.

    ``program(*args, **kwargs)`` may use Pyro, autograd and modules; it returns tensors, and values that the signature
    fixes, in any nesting. The first call with a new *signature* runs the program itself, and then traces it under
    :func:`torch.fx.experimental.proxy_tensor.make_fx`, which records every tensor operation, those of autograd
    included; from the second call on the operations run by themselves, without Python modules, Pyro, provenance or
    autograd. Every tensor that can be reached from the arguments and ``roots``
    (:class:`pplmodels.infer.state.State`) is an input of the graph, read anew at each call. Random operations draw from
    the generators, in the order of the program. In-place changes of tensors are operations like others. Where the
    program puts another tensor in an attribute, list, dict or variable, so does the graph.

    The signature holds everything else that can be reached, the shape, dtype and device of every tensor, which tensors
    are the same, and torch's global settings. A change makes a new graph.

    A new graph is compared with the program from the same state, under another seed than it was traced with; then again
    at its second call, fourth, eighth and so on, each time with that call's arguments, so that what the signature does
    not show (a generator, a file, an object of C) is found too. Results, changes of tensors and the numbers drawn must
    agree up to rounding, which is tried under two seeds before it is said that they do not. What differs, or cannot be
    traced, raises :class:`CannotCompile` with everything as it was before the call; with ``fallback`` the program runs
    as it is from there on, after one warning.

    Arguments:
        program: what to replay.
        roots: gives the objects that it reads, by name; what they are may change from call to call.
        fallback: run the program itself where it cannot be compiled.
        tolerance: by which graph and program may differ, of the largest entry (sums are taken in another order);
            None for what float32 and float64 round.
    """

    def __init__(
        self,
        program: Callable,
        roots: Callable[[], Mapping[str, object]],
        fallback: bool = False,
        tolerance: float | None = None,
    ):
        self.program, self.roots = program, roots
        self.fallback, self.tolerance = fallback, tolerance
        self.graphs: dict[tuple, _Graph | None] = {}
        self.traces = 0
        self._found: list[nn.Module] = []  # modules that run and cannot be reached otherwise
        self._rooted: dict[str, object] = {}
        self._state: State | None = None
        self._numbers: dict[tuple, int] = {}
        self._numbered, self._number = None, 0
        self._last: tuple[State, State] | None = None
        self._warned = self._told = False

    def __reduce__(self):
        """Copies, and what is read from a file, trace anew."""
        return type(self), (self.program, self.roots, self.fallback, self.tolerance)

    def __call__(self, *args, **kwargs):
        """The program's result, detached; on CUDA it is overwritten by the next call."""
        if reason := _surroundings():
            return self._uncompiled(CannotCompile(f"this step cannot be compiled {reason}."), args, kwargs)
        state = self._current()
        arguments = State(_named(args, kwargs), known=state)
        if reason := _unusual(state, arguments):
            return self._uncompiled(CannotCompile(f"this step cannot be compiled: {reason}."), args, kwargs)
        key = self._key(state, arguments)
        if key not in self.graphs:
            return self._first(state, arguments, args, kwargs)
        if (graph := self.graphs[key]) is None:
            return self.program(*args, **kwargs)
        graph.calls += 1
        if graph.calls & (graph.calls - 1) == 0:
            return self._compared(graph, key, state, arguments, args, kwargs)
        return self._replayed(graph, state, arguments)

    def _replayed(self, graph: "_Graph", state: State, arguments: State):
        results, rebound = graph(state.tensors, arguments.tensors)
        if rebound:
            state.rebind(rebound)
        return results

    def _uncompiled(self, error: CannotCompile, args: tuple, kwargs: dict):
        self._give_up(error)
        return self.program(*args, **kwargs)

    def _give_up(self, error: CannotCompile) -> None:
        """Raise, or warn once that the program runs as it is."""
        if not self.fallback:
            raise error
        if not self._warned:
            warnings.warn(f"{error} It runs uncompiled.", stacklevel=2)
        self._warned = True

    def _current(self) -> State:
        """The state of what the program reads, walked again only where something was rebound."""
        roots = dict(self.roots())
        same = self._state is not None and len(roots) == len(self._rooted)
        same = same and all(roots[name] is self._rooted.get(name) for name in roots)
        if not (same and self._state.unchanged()):
            self._rooted, self._state = roots, self._walk(roots)
        return self._state

    def _walk(self, roots: Mapping[str, object] | None = None) -> State:
        roots = dict(self.roots()) if roots is None else roots
        hidden = {f"a hidden {type(module).__name__}": module for module in self._found}
        return State({**roots, **hidden, "torch's global hooks": HOOKS})

    def _key(self, state: State, arguments: State) -> tuple:
        if state is not self._numbered:  # a number stands for a signature, which is long
            self._numbered, self._number = state, self._numbers.setdefault(state.signature, len(self._numbers))
        return self._number, arguments.signature, _settings()

    def _first(self, state: State, arguments: State, args: tuple, kwargs: dict):
        """Run the program itself, then make its graph, from the state in which the program leaves other objects alone.

        A first run may make what later ones find: lazy parameters, caches, an AutoGuide's sites.
        """
        self._tell_why(state, arguments)
        start = _snapshot(state, arguments)
        with modules_that_run() as ran:
            results = _detached(self.program(*args, **kwargs))
        known = {id(module) for module in self._found}
        self._found += [m for m in ran if not state.holds(m) and id(m) not in known]
        settled = self._walk()
        end = _snapshot(settled, arguments)
        same = settled.signature == state.signature
        base = state if same else settled
        if same:
            state.restore_bindings()
            start.restore()
        again, again_named = _copied(args, kwargs, state)
        given = State(_named(again, again_named), known=base)
        try:
            self._check_arguments(arguments, args, kwargs, known=state)
            graph = self._traced(base, given, again, again_named)
        except CannotCompile as error:
            if not self.fallback:
                state.restore_bindings()
                arguments.restore_bindings()
                start.restore()
                raise
            graph = None
            self._give_up(error)
        self._keep(self._key(base, given), graph)
        if same and graph is not None:  # so that a step is the graph's whether it is a process's first or not
            arguments.restore_bindings()
            self._state = state
            return self._replayed(graph, state, arguments)
        settled.restore_bindings()
        end.restore()
        self._state = settled
        return results

    @staticmethod
    def _check_arguments(before: State, args: tuple, kwargs: dict, known: State) -> None:
        """Raise if the program has put something else into its arguments than was there."""
        after = State(_named(args, kwargs), known=known)
        if after.signature != before.signature or not before.unchanged():
            what = before.difference(after) or "an argument"
            raise CannotCompile(
                f"this step cannot be compiled: the program changes {what}, which a graph would not: keep what it "
                "makes in an attribute."
            )

    def _keep(self, key: tuple, graph: "_Graph | None") -> None:
        if len(self.graphs) >= MANY:
            self.graphs.pop(next(iter(self.graphs)))
        if len(self._numbers) > 4 * MANY:
            self._numbers = {state: number for state, number in self._numbers.items() if number >= key[0] - MANY}
        self.graphs[key] = graph

    def _traced(self, state: State, arguments: State, args: tuple, kwargs: dict) -> "_Graph":
        """The graph from a state, compared with the program; the state is left as it was."""
        with _left_as_it_was(state, arguments) as before:
            torch.manual_seed(torch.initial_seed() + 1)
            try:
                expected = self._outcome(state, arguments, args, kwargs)  # raises where no graph could be right
            except CannotCompile:
                raise
            except Exception as error:  # the first run went well: the program is not one that can be run again
                raise explained(error, "a second run with the same arguments fails") from error
            state.restore_bindings()
            before.restore()
            torch.manual_seed(torch.initial_seed() + 2)
            graph = _Graph(self.program, args, kwargs, state, arguments, self._walk)
            state.restore_bindings()
            before.restore()
            graph.check(state)
            self._compare(graph, before, (1, 2), state, arguments, args, kwargs, expected)
            before.restore()
            if all(tensor.is_cuda for tensor in graph.chosen(state.tensors, arguments.tensors)):
                graph.capture(state.tensors, arguments.tensors)
        return graph

    def _compared(self, graph: "_Graph", key: tuple, state: State, arguments: State, args: tuple, kwargs: dict):
        """A call at which graph and program are compared; returns the graph's results."""
        try:
            with _left_as_it_was(state, arguments) as before:
                self._compare(graph, before, (0, 1), state, arguments, args, kwargs)
        except CannotCompile as error:
            if (since := graph.calls // 2) > 1:
                error = CannotCompile(
                    f"{str(error).removesuffix('.')}: found at call {graph.calls}, last compared at call {since}, so "
                    f"calls {since + 1} to {graph.calls - 1} may have used a stale value."
                )
            self.graphs[key] = None
            return self._uncompiled(error, args, kwargs)
        return self._replayed(graph, state, arguments)

    def _compare(
        self,
        graph: "_Graph",
        before: Snapshot,
        seeds: tuple[int, int],
        state: State,
        arguments: State,
        args: tuple,
        kwargs: dict,
        expected: "_Outcome | None" = None,
    ) -> None:
        """Run graph and program from the same state; raises if they differ under both seeds (offsets to the current).

        A difference under one seed may be a choice that falls the other way by rounding. ``expected`` is what the
        program does under the first.
        """
        differences = []
        for offset in seeds:
            outcomes = [] if expected is None else [expected]
            for run in (None, graph)[len(outcomes) :]:
                if offset:
                    torch.manual_seed(torch.initial_seed() + offset)
                outcomes.append(self._outcome(state, arguments, args, kwargs, run))
                state.restore_bindings()
                before.restore()
            expected = None
            # all ranks have to go on alike
            differences.append(max(ranks.from_all(self._difference(*outcomes, before, state))))
            if not differences[-1]:
                return
        raise CannotCompile(
            f"the replayed step differs from the program's own in {differences[0]}: something that it reads is neither "
            "a tensor nor in reach of model and guide, or a random choice decides which sites there are."
        )

    def _outcome(
        self, state: State, arguments: State, args: tuple, kwargs: dict, graph: "_Graph | None" = None
    ) -> "_Outcome":
        """What one run, of the graph or the program, returns and leaves behind."""
        if graph is not None:
            results, rebound = graph(state.tensors, arguments.tensors)
            tensors = [rebound.get(index, tensor) for index, tensor in enumerate(state.tensors)]
        else:
            drawn, seed = _other_generators(state), torch.initial_seed()
            memory = [tensor.data_ptr() for tensor in state.tensors]
            results = self.program(*args, **kwargs)
            if _other_generators(state) != drawn:
                place = line_that_draws(lambda: _other_generators(state), self.program, *args, **kwargs)
                raise CannotCompile(
                    "this step cannot be compiled: numbers are drawn from Python's or NumPy's random generator, "
                    f"which a graph would keep{place}: use torch's."
                )
            if torch.initial_seed() != seed:
                raise CannotCompile(
                    "this step cannot be compiled: the program seeds torch's random generator, which a graph would not."
                )
            after = self._walk()
            if after.signature != state.signature:
                raise CannotCompile(
                    "this step cannot be compiled: the program changes something that is no tensor each time that it "
                    f"runs, {state.difference(after)}, which a graph would not."
                )
            self._check_arguments(arguments, args, kwargs, known=state)
            for index, (tensor, pointer) in enumerate(zip(state.tensors, memory, strict=True)):
                if after.tensors[index] is tensor and tensor.data_ptr() != pointer:
                    raise CannotCompile(
                        f"this step cannot be compiled: the program gives {state.tensor_name(index)} other memory, "
                        "which a graph would not: write to it in place."
                    )
            tensors = after.tensors
        tensors = [tensor.detach().clone() for tensor in (*tensors, *arguments.tensors)]
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_flatten(_detached(results))[0]]
        return _Outcome(leaves, tensors, generator_states())

    def _difference(self, program: "_Outcome", graph: "_Outcome", before: Snapshot, state: State) -> str:
        """What the graph gets wrong; "" if nothing."""
        floating = [r for r in program.results[1:] if isinstance(r, Tensor) and r.is_floating_point()]
        largest = max(map(_largest, floating), default=0.0)
        for number, (expected, got) in enumerate(zip(program.results, graph.results, strict=True)):
            # below the rounding of the largest a gradient is noise, such as that of a bias before batch normalisation
            if not _close(got, expected, self.tolerance, largest if number else 0.0):
                return f"result {number + 1}"
        for number, (expected, got) in enumerate(zip(program.tensors, graph.tensors, strict=True)):
            if not _changed_alike(got, expected, before.tensors[number][1], self.tolerance):
                return state.tensor_name(number) if number < len(state.tensors) else "an argument"
        if not _same_random(program.generators, graph.generators):
            return "how many random numbers it draws"
        return ""

    def _tell_why(self, state: State, arguments: State) -> None:
        """Name what keeps changing: a number at its second value, anything after many traces."""
        self.traces += 1
        if self._last is not None:
            known, given = self._last
            numbers = arguments.changed_numbers(given) if known.signature == state.signature else []
            if numbers and not (self._told or self._warned):
                self._told = True
                warnings.warn(
                    f"this program is traced again because of another number, {', '.join(numbers)}. Pass a number that "
                    "varies as a tensor: its value is read at each call and needs no new trace.",
                    stacklevel=4,
                )
            elif self.traces > MANY:
                changed = known.difference(state) or given.difference(arguments) or "torch's settings"
                warnings.warn(
                    f"this program has been traced {self.traces} times, now because of {changed}: "
                    "keep shapes and plain values the same from call to call, and pass what varies as tensors.",
                    stacklevel=4,
                )
        self._last = state, arguments


class _Graph:
    """One traced graph, called with the tensors of state and arguments."""

    def __init__(self, program: Callable, args: tuple, kwargs: dict, state: State, arguments: State, walk: Callable):
        tensors = [*state.tensors, *arguments.tensors]
        self.spec, self.calls = None, 1

        def flat(*inputs):  # the very tensors that the program will meet: make_fx knows them by identity
            with refusing(tensors):
                results, self.spec = tree_flatten(program(*args, **kwargs))
            self.constants = [None if isinstance(result, Tensor) else result for result in results]
            pairs = enumerate(zip(state.tensors, walk().tensors, strict=True))
            put = {index: found for index, (tensor, found) in pairs if found is not tensor}
            self.rebound = list(put)  # the program puts other tensors in their places
            return [result.detach() if isinstance(result, Tensor) else None for result in (*results, *put.values())]

        try:
            # one mode for all nodes' shapes: without a context make_fx constructs one a node, half of the time it takes
            with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
                module = make_fx(flat)(*tensors)
        except Exception as error:
            raise explained(error) from error
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        attached = [any(user.target is not aten.detach.default for user in node.users) for node in placeholders]
        self.cut = [i for i, t in enumerate(tensors) if t.grad_fn is not None and attached[i]]
        module, self.used = simplified(module, tensors)
        self.requires_grad = [tensors[index].requires_grad for index in self.rebound]
        self.run = module.forward
        self.captured: torch.cuda.CUDAGraph | None = None

    def check(self, state: State) -> None:
        """Raise where a graph cannot do what the program does with a tensor of the state."""
        for index in self.cut:
            name = state.tensor_name(index) if index < len(state.tensors) else "an argument"
            raise CannotCompile(
                f"this step cannot be compiled: {name} was computed outside of the step and requires a gradient, which "
                "would end at it: detach it."
            )
        for index in self.rebound:
            if not state.can_rebind(index):
                raise CannotCompile(
                    "this step cannot be compiled: the program puts another tensor in the place of "
                    f"{state.tensor_name(index)}, which is not an attribute, variable, or list or dict entry."
                )

    def chosen(self, state: list[Tensor], arguments: list[Tensor]) -> list[Tensor]:
        """The tensors that the graph reads or writes."""
        tensors = [*state, *arguments]
        return [tensors[index] for index in self.used]

    @torch.no_grad()
    def capture(self, state: list[Tensor], arguments: list[Tensor]) -> None:
        """Record the graph's kernels as one CUDA graph, with fixed buffers for arguments and results.

        The state's tensors are read and written where they are; when one has moved, the kernels are recorded anew.
        """
        number = sum(index < len(state) for index in self.used)
        tensors = self.chosen(state, arguments)
        self.addresses = [tensor.data_ptr() for tensor in tensors[:number]]
        self.buffers = [tensor.clone() for tensor in tensors[number:]]
        inputs = [*tensors[:number], *self.buffers]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        before = Snapshot(inputs)  # the runs below change what the graph changes
        with torch.cuda.stream(side):  # libraries set themselves up outside the capture
            self.run(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            self.results = self.run(*inputs)
        before.restore()
        self.captured = captured

    @torch.no_grad()
    def __call__(self, state: list[Tensor], arguments: list[Tensor]):
        tensors = self.chosen(state, arguments)
        if self.captured is None:
            results = self.run(*tensors)
        else:
            number = len(self.addresses)
            if [tensor.data_ptr() for tensor in tensors[:number]] != self.addresses:
                self.capture(state, arguments)
            torch._foreach_copy_(self.buffers, tensors[number:])
            self.captured.replay()
            number = len(self.constants)
            results = [*self.results[:number], *(result.clone() for result in self.results[number:])]
        results, put = results[: len(self.constants)], results[len(self.constants) :]
        results = [fixed if result is None else result for result, fixed in zip(results, self.constants, strict=True)]
        for found, needed in zip(put, self.requires_grad, strict=True):
            found.requires_grad_(needed)
        return tree_unflatten(results, self.spec), dict(zip(self.rebound, put, strict=True))


@dataclass
class _Outcome:
    """What a run returned, the tensors it left behind, and the random generators."""

    results: list
    tensors: list[Tensor]
    generators: dict


def _snapshot(state: State, arguments: State) -> Snapshot:
    return Snapshot([*state.tensors, *arguments.tensors], [*state.generators, *arguments.generators])


@contextmanager
def _left_as_it_was(state: State, arguments: State) -> Iterator[Snapshot]:
    """Gives what state and arguments hold, and goes back to it at the end."""
    before = _snapshot(state, arguments)
    try:
        yield before
    finally:
        state.restore_bindings()
        arguments.restore_bindings()
        before.restore()


def _named(args: tuple, kwargs: dict) -> dict[str, object]:
    numbered = {f"argument {number}": value for number, value in enumerate(args, 1)}
    return {**numbered, **{f"argument {name}": value for name, value in kwargs.items()}}


def _settings() -> tuple:
    """What of torch's global state changes the operations of a program."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")),
    )


def _surroundings() -> str:
    """Why a graph would not be the program in the contexts of this call; "" if it would."""
    if _PYRO_STACK:
        names = ", ".join(type(handler).__name__ for handler in _PYRO_STACK)
        return f"inside of Pyro's handlers ({names}): put them around model and guide"
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    if modes := [type(mode).__name__ for mode in modes if not isinstance(mode, DeviceContext)]:
        return f"inside of torch's modes ({', '.join(modes)}), which change what operations do"
    if torch.is_anomaly_enabled():
        return "under torch's anomaly detection, which looks at values"
    return ""


def _unusual(state: State, arguments: State) -> str:
    """Why a graph could not stand for a program that reads these things; "" if nothing is known against it."""
    if arrays := arguments.large_arrays(ARRAY):
        names = arguments.names(arrays)
        return f"{names} is a NumPy array, whose values a graph would keep: pass torch.from_numpy of it"
    if arguments.strange:
        return f"{arguments.names(arguments.strange)} is not a plain tensor"
    for found in (state, arguments):
        if found.iterators:
            return (
                f"{found.names(found.iterators)} is an iterator, which a graph would not move on: take what it gives "
                "outside of the step and pass it as an argument"
            )
    return ""


def _copied(args: tuple, kwargs: dict, state: State) -> tuple[tuple, dict]:
    """The arguments with other tensors of the same values: what the last run keeps of it knows its arguments again.

    Tensors that the state has too, that share memory or that :func:`torch.clone` would lay out otherwise stay.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if type(leaf) is Tensor and leaf.layout is torch.strided]
    memory = Counter(t.untyped_storage().data_ptr() for t in {id(t): t for t in tensors}.values())
    copies = {}
    for tensor in tensors:
        copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        if memory[tensor.untyped_storage().data_ptr()] == 1 and not state.holds(tensor) and tensor.is_leaf:
            copies[id(tensor)] = copy if kind_of(copy) == kind_of(tensor) else tensor
    return tree_map(lambda leaf: copies.get(id(leaf), leaf), (args, kwargs))


def _detached(results):
    leaves, spec = tree_flatten(results)
    return tree_unflatten([leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


def _other_generators(state: State) -> tuple:
    """The states of the generators that are not torch's, comparable."""
    own = [repr(values) for values in state.generator_states() if not isinstance(values, Tensor)]
    return random.getstate(), repr(np.random.get_state()), own  # noqa: NPY002 - the global one, if a guide draws from it


def _same_random(one: dict, other: dict) -> bool:
    same = zip([one["torch"], *one["cuda"]], [other["torch"], *other["cuda"]], strict=True)
    return all(torch.equal(a, b) for a, b in same)


def _rounding(tensor: Tensor, tolerance: float | None) -> float:
    return tolerance or (1e-9 if tensor.dtype == torch.float64 else 1e-4)


def _largest(tensor: Tensor) -> float:
    """The largest absolute value that is a number; what is infinite or NaN has to be so in both."""
    finite = torch.nan_to_num(tensor.detach(), 0.0, 0.0, 0.0)
    return float(finite.abs().amax()) if tensor.numel() else 0.0


def _close(got, expected, tolerance: float | None, largest: float = 0.0) -> bool:
    """Equal up to the rounding of sums taken in another order, measured against the largest entry.

    What is smaller than the rounding of ``largest`` counts as equal.
    """
    if not isinstance(expected, Tensor):
        return got == expected
    if got is None or got.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    scale = _largest(expected)
    allowed = _rounding(expected, tolerance) * max(scale, largest / 100)
    same = (got == expected) | (got.isnan() & expected.isnan())
    return bool((same | ((got - expected).abs() <= allowed)).all())


def _changed_alike(got: Tensor, expected: Tensor, before: Tensor, tolerance: float | None) -> bool:
    """Whether two values are the same change of a third, up to rounding of the change and of the value."""
    if torch.equal(got, expected):
        return True
    if not expected.is_floating_point():
        return False
    change = (expected - before).abs()
    value = torch.finfo(expected.dtype).eps * expected.abs()
    allowed = _rounding(expected, tolerance) * _largest(change) + 4 * value
    same = (got == expected) | (got.isnan() & expected.isnan()) | ((got - expected).abs() <= allowed)
    return bool(same.all()) and not torch.equal(expected, before)
