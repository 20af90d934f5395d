"""Programs that are traced once into a flat graph of tensor operations and then replayed."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from pplmodels import distributed
from pplmodels.infer.compile.comparison import Outcome, difference
from pplmodels.infer.compile.state import Snapshot, State, kind_of
from pplmodels.infer.compile.traced import TracedGraph, tensor_name
from pplmodels.infer.compile.tracing import CompileError, explained, line_that_draws, modules_that_run, refusal
from pplmodels.rng import get_rng_state
from pplmodels.states import named, packed

MANY = 16  # maximum number of graphs, and number of traces after which each new trace causes a warning
ARRAY = 64  # maximum size of NumPy arrays in arguments, which become part of the signature
HOOKS = {name: hooks for name, hooks in vars(nn.modules.module).items() if name.startswith("_global_")}


class CompiledProgram:
    """A program that runs as a flat graph after its first call with given shapes.

    ``program(*args, **kwargs)`` may use Pyro, autograd and modules. It returns tensors, and values that are determined
    by the signature, in any nesting. The first call with a new *signature* runs the program and then traces it with
    :func:`torch.fx.experimental.proxy_tensor.make_fx`, which records all tensor operations, including those of
    autograd. Later calls only run these operations, without Python modules, Pyro, provenance or autograd. Every tensor
    that can be reached from the arguments and ``roots`` (:class:`pplmodels.infer.compile.state.State`) is an input of
    the graph, whose value is read at each call. Random operations draw from the generators in the same order as the
    program. In-place operations on tensors are recorded like other operations. If the program replaces a tensor in an
    attribute, list, dict or variable, the graph replaces it, too.

    The signature consists of everything else that can be reached, the shape, dtype and device of every tensor, the
    identities of tensors, and torch's global settings. A new signature causes a new trace.

    A new graph is compared with the program from the same state, with another seed than in tracing
    (:mod:`pplmodels.infer.compile.comparison`). The comparison is repeated at the graph's second, fourth, eighth, ...
    call, with the arguments of that call, to detect changes that the signature does not contain (e.g. of a file or of
    an object of a C extension). Graph and program count as different if they differ with two seeds. In this case, or if
    the program cannot be traced, the state before the call is restored and :class:`CompileError` is raised. With
    ``fallback``, there is one warning instead, and from then on the program itself is run.

    Arguments:
        program: the function to compile.
        roots: returns the objects that the program reads, by name. They may change between calls.
        fallback: run the program itself if it cannot be compiled.
        tolerance: allowed difference of graph and program relative to the largest entry, because sums are reordered;
            None for defaults for float32 and float64.
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
        self.graphs: dict[tuple, TracedGraph | None] = {}
        self.traces = 0
        self._found: list[nn.Module] = []  # called modules that cannot be reached from the roots
        self._rooted: dict[str, object] = {}
        self._state: State | None = None
        self._numbers: dict[tuple, int] = {}
        self._numbered, self._number = None, 0
        self._last: tuple[State, State] | None = None
        self._warned = self._told = False

    def __reduce__(self):
        """Copied and unpickled programs have no graphs and are traced again."""
        return type(self), (self.program, self.roots, self.fallback, self.tolerance)

    def __call__(self, *args, **kwargs):
        """The program's detached result. On CUDA, it is overwritten by the next call."""
        if reason := _why_not_here():
            return self._uncompiled(refusal(reason), args, kwargs)
        state = self._current()
        arguments = State(_named(args, kwargs), known=state)
        if reason := _why_not_these(state, arguments):
            return self._uncompiled(refusal(reason), args, kwargs)
        key = self._key(state, arguments)
        if key not in self.graphs:
            return self._first(state, arguments, args, kwargs)
        if (graph := self.graphs[key]) is None:
            return self.program(*args, **kwargs)
        graph.calls += 1
        if graph.calls & (graph.calls - 1) == 0:
            return self._compared(graph, key, state, arguments, args, kwargs)
        return self._replayed(graph, state, arguments)

    def _replayed(self, graph: TracedGraph, state: State, arguments: State):
        results, rebound = graph(state.tensors, arguments.tensors)
        if rebound:
            state.rebind(rebound)
        return results

    def _uncompiled(self, error: CompileError, args: tuple, kwargs: dict):
        self._give_up(error)
        return self.program(*args, **kwargs)

    def _give_up(self, error: CompileError) -> None:
        """Raise an error or, with ``fallback``, warn once that the program runs uncompiled."""
        if not self.fallback:
            raise error
        if not self._warned:
            warnings.warn(f"{error} It runs uncompiled.", stacklevel=2)
        self._warned = True

    def _current(self) -> State:
        """The state that the program reads. It is only collected again if an object has been rebound."""
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
        if state is not self._numbered:  # signatures are long, so keys use their numbers
            self._numbered, self._number = state, self._numbers.setdefault(state.signature, len(self._numbers))
        return self._number, arguments.signature, _settings()

    def _first(self, state: State, arguments: State, args: tuple, kwargs: dict):
        """Run the program itself, then trace it.

        If the first run creates objects that later runs use (lazy parameters, caches, the sites of an AutoGuide), the
        trace starts from the state after this run, otherwise from the state before it.
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
        except CompileError as error:
            if not self.fallback:
                state.restore_bindings()
                arguments.restore_bindings()
                start.restore()
                raise
            graph = None
            self._give_up(error)
        self._keep(self._key(base, given), graph)
        if same and graph is not None:  # so resumed training is identical to uninterrupted training
            arguments.restore_bindings()
            self._state = state
            return self._replayed(graph, state, arguments)
        settled.restore_bindings()
        end.restore()
        self._state = settled
        return results

    @staticmethod
    def _check_arguments(before: State, args: tuple, kwargs: dict, known: State) -> None:
        """Raise an error if the program has changed the contents of its arguments."""
        after = State(_named(args, kwargs), known=known)
        if after.signature != before.signature or not before.unchanged():
            what = before.difference(after) or "an argument"
            raise refusal(
                f"the program modifies {what}, but a replay would not; store what the program computes in an attribute"
            )

    def _keep(self, key: tuple, graph: TracedGraph | None) -> None:
        if len(self.graphs) >= MANY:
            self.graphs.pop(next(iter(self.graphs)))
        if len(self._numbers) > 4 * MANY:
            self._numbers = {state: number for state, number in self._numbers.items() if number >= key[0] - MANY}
        self.graphs[key] = graph

    def _traced(self, state: State, arguments: State, args: tuple, kwargs: dict) -> TracedGraph:
        """Trace a graph from a state and compare it with the program. The state is restored."""
        with _left_as_it_was(state, arguments) as before:
            torch.manual_seed(torch.initial_seed() + 1)
            try:
                expected = self._outcome(state, arguments, args, kwargs)  # raises if no graph could be correct
            except CompileError:
                raise
            except Exception as error:  # the first run succeeded, so the program cannot be repeated
                raise explained(error, "a second run with the same arguments fails") from error
            state.restore_bindings()
            before.restore()
            torch.manual_seed(torch.initial_seed() + 2)
            graph = TracedGraph(self.program, args, kwargs, state, arguments, self._walk)
            state.restore_bindings()
            before.restore()
            graph.check(state, arguments)
            self._compare(graph, before, (1, 2), state, arguments, args, kwargs, expected)
            before.restore()
            if all(tensor.is_cuda for tensor in graph.chosen(state.tensors, arguments.tensors)):
                graph.capture(state.tensors, arguments.tensors)
        return graph

    def _compared(self, graph: TracedGraph, key: tuple, state: State, arguments: State, args: tuple, kwargs: dict):
        """Compare graph and program, then replay the graph and return its results."""
        try:
            with _left_as_it_was(state, arguments) as before:
                self._compare(graph, before, (0, 1), state, arguments, args, kwargs)
        except CompileError as error:
            if (since := graph.calls // 2) > 1:
                error = CompileError(
                    f"{str(error).removesuffix('.')} (found at call {graph.calls}, last compared at call {since}; "
                    f"calls {since + 1} to {graph.calls - 1} may have used stale values)."
                )
            self.graphs[key] = None
            return self._uncompiled(error, args, kwargs)
        return self._replayed(graph, state, arguments)

    def _compare(
        self,
        graph: TracedGraph,
        before: Snapshot,
        seeds: tuple[int, int],
        state: State,
        arguments: State,
        args: tuple,
        kwargs: dict,
        expected: Outcome | None = None,
    ) -> None:
        """Run graph and program from the same state; raises if they differ for both seeds.

        ``seeds`` are offsets to the current seed. A difference for only one seed may be caused by rounding that flips
        a discrete choice. ``expected`` is the program's outcome for the first seed, if known.
        """
        differences, name = [], partial(tensor_name, state, arguments)
        for offset in seeds:
            outcomes = [] if expected is None else [expected]
            for run in (None, graph)[len(outcomes) :]:
                if offset:
                    torch.manual_seed(torch.initial_seed() + offset)
                outcomes.append(self._outcome(state, arguments, args, kwargs, run))
                state.restore_bindings()
                before.restore()
            expected = None
            # all ranks must take the same decision
            found = difference(*outcomes, [value for _, value in before.tensors], name, self.tolerance)
            differences.append(max(distributed.all_gather_object(found)))
            if not differences[-1]:
                return
        raise CompileError(
            f"the replayed step differs from the program in {differences[0]}: the program reads state that cannot be "
            "reached from model and guide, or its sites depend on a random choice."
        )

    def _outcome(
        self, state: State, arguments: State, args: tuple, kwargs: dict, graph: TracedGraph | None = None
    ) -> Outcome:
        """The outcome of one run of the graph or, without ``graph``, of the program."""
        if graph is not None:
            results, rebound = graph(state.tensors, arguments.tensors)
            tensors = [rebound.get(index, tensor) for index, tensor in enumerate(state.tensors)]
        else:
            drawn, seed = _other_generators(state), torch.initial_seed()
            memory = [tensor.data_ptr() for tensor in state.tensors]
            results = self.program(*args, **kwargs)
            if _other_generators(state) != drawn:
                place = line_that_draws(lambda: _other_generators(state), self.program, *args, **kwargs)
                raise refusal(
                    f"the program draws random numbers from Python's or NumPy's generator{place}, but a replay would "
                    "repeat the same numbers; use torch's generator"
                )
            if torch.initial_seed() != seed:
                raise refusal("the program seeds torch's random generator, but a replay would not")
            after = self._walk()
            if after.signature != state.signature:
                raise refusal(
                    f"each run of the program changes {state.difference(after)}, which is not a tensor, but a replay "
                    "would not"
                )
            self._check_arguments(arguments, args, kwargs, known=state)
            for index, (tensor, pointer) in enumerate(zip(state.tensors, memory, strict=True)):
                if after.tensors[index] is tensor and tensor.data_ptr() != pointer:
                    raise refusal(
                        f"the program moves {state.tensor_name(index)} to other memory, but a replay would not; write "
                        "to it in place"
                    )
            tensors = after.tensors
        tensors = [tensor.detach().clone() for tensor in (*tensors, *arguments.tensors)]
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_flatten(_detached(results))[0]]
        return Outcome(leaves, tensors, get_rng_state())

    def _tell_why(self, state: State, arguments: State) -> None:
        """Warn about the cause of a new trace: a changed number (once), or any change after many traces."""
        self.traces += 1
        if self._last is not None:
            known, given = self._last
            numbers = arguments.changed_numbers(given) if known.signature == state.signature else []
            if numbers and not (self._told or self._warned):
                self._told = True
                warnings.warn(
                    f"the program is traced again because a number changed: {', '.join(numbers)}. Pass numbers that "
                    "vary as tensors, whose values are read at each call without a new trace.",
                    stacklevel=4,
                )
            elif self.traces > MANY:
                changed = known.difference(state) or given.difference(arguments) or "torch's settings"
                warnings.warn(
                    f"the program has been traced {self.traces} times, now because of a change in {changed}: keep "
                    "shapes and plain values the same in all calls, and pass values that vary as tensors.",
                    stacklevel=4,
                )
        self._last = state, arguments


def _snapshot(state: State, arguments: State) -> Snapshot:
    return Snapshot([*state.tensors, *arguments.tensors], [*state.generators, *arguments.generators])


@contextmanager
def _left_as_it_was(state: State, arguments: State) -> Iterator[Snapshot]:
    """Yields a snapshot of state and arguments, and restores it on exit."""
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
    """The part of torch's global state that affects the operations of a program."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")),
    )


def _why_not_here() -> str:
    """The reason why the contexts around this call prevent compilation; "" if there is none."""
    if _PYRO_STACK:
        names = ", ".join(type(handler).__name__ for handler in _PYRO_STACK)
        return f"it is called inside Pyro's handlers ({names}); apply them to model and guide instead"
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    if modes := [type(mode).__name__ for mode in modes if not isinstance(mode, DeviceContext)]:
        return f"it is called inside torch's modes ({', '.join(modes)}), which change the behavior of operations"
    if torch.is_anomaly_enabled():
        return "it is called under torch's anomaly detection, which reads the values of tensors"
    return ""


def _why_not_these(state: State, arguments: State) -> str:
    """The reason why a program that reads these objects cannot be compiled; "" if there is none."""
    if arrays := arguments.large_arrays(ARRAY):
        names = arguments.names(arrays)
        return f"{names} is a NumPy array, whose values would be constants of the graph; pass torch.from_numpy(...)"
    if arguments.unsupported:
        return f"{arguments.names(arguments.unsupported)} is not a plain tensor"
    for found in (state, arguments):
        if found.iterators:
            return (
                f"{found.names(found.iterators)} is an iterator, but a replay would not advance it; take the next item "
                "outside of the step and pass it as an argument"
            )
    return ""


def _copied(args: tuple, kwargs: dict, state: State) -> tuple[tuple, dict]:
    """The arguments, with tensors replaced by clones.

    The first run may have cached results by the identity of its arguments, as Pyro's transforms do. A second run with
    the same tensors would use this cache, while the next step will not. Tensors are not cloned if they are part of the
    state, if they share memory, or if a clone would have other strides.
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
    """The states of all generators except torch's, in a comparable form."""
    states = get_rng_state()
    own = [values for values in state.get_rng_state() if not isinstance(values, Tensor)]
    return packed(named({"python": states["python"], "numpy": states["numpy"]})), repr(own)
