"""Programs that are traced once into a flat graph of tensor operations and then replayed."""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pplmodels import distributed
from pplmodels.infer.compile.call import Call
from pplmodels.infer.compile.comparison import Outcome, difference
from pplmodels.infer.compile.fused import BEGUN, Fusion, FusionError
from pplmodels.infer.compile.state import Snapshot, State
from pplmodels.infer.compile.traced import TracedGraph
from pplmodels.infer.compile.tracing import CompileError, explained, line_that_draws, modules_that_run, refusal
from pplmodels.rng import get_rng_state
from pplmodels.states import named, packed

MANY = 16  # maximum number of graphs, and number of traces after which each new trace causes a warning
FREQUENT = 32  # calls after which a graph may be fused
# Fused sums are rounded differently, and some programs amplify this (a softmax near a tie). Errors of other kinds, such
# as random numbers in another order, change gradients by their own size.
AMPLIFIED = 100.0  # factor of the tolerance for fused graphs
TIMED = 5  # calls of a fused graph, and of the graph itself, that are compared in time
PAYS = 4  # a graph is fused if its calls will take this multiple of the expected time of its compilation
HOOKS = {name: hooks for name, hooks in vars(nn.modules.module).items() if name.startswith("_global_")}
Result = TypeVar("Result")


class CompiledProgram(Generic[Result]):
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

    :meth:`fuse` fuses the operations of the graphs in the background (:class:`pplmodels.infer.compile.fused.Fusion`).
    Meanwhile they are replayed one by one. A fused graph is compared with the program in the same way, and it is used
    if it agrees up to rounding and is faster.

    Arguments:
        program: the function to compile.
        roots: returns the objects that the program reads, by name. They may change between calls.
        fallback: run the program itself if it cannot be compiled.
        tolerance: allowed difference of graph and program relative to the largest entry, because sums are reordered;
            None for defaults for float32 and float64.
        fused: fuse all graphs that are called at least 32 times. If this is not possible, there is a warning.

    Attributes:
        fusion: the state of the last fusion as a sentence; "" if there was none.
    """

    def __init__(
        self,
        program: Callable[..., Result],
        roots: Callable[[], Mapping[str, object]],
        fallback: bool = False,
        tolerance: float | None = None,
        fused: bool = False,
    ):
        self.program, self.roots = program, roots
        self.fallback, self.tolerance, self.fused = fallback, tolerance, fused
        self.fusion = ""
        self._ends = math.inf if fused else 0.0  # the time at which the calls are expected to end; 0: never fuse
        self.graphs: dict[tuple, TracedGraph | None] = {}
        self.traces = 0
        self._found: list[nn.Module] = []  # called modules that cannot be reached from the roots
        self._rooted: dict[str, object] = {}
        self._state: State | None = None
        self._numbers: dict[tuple, int] = {}
        self._numbered: State | None = None
        self._number = 0
        self._last: Call | None = None
        self._warned = self._told = False

    def __reduce__(self):
        """Copied and unpickled programs have no graphs and are traced again."""
        return type(self), (self.program, self.roots, self.fallback, self.tolerance, self.fused)

    def __call__(self, *args, **kwargs) -> Result:
        """The program's detached result. On CUDA, it is overwritten by the next call."""
        if reason := _why_not_here():
            return self._uncompiled(refusal(reason), args, kwargs)
        call = Call(self._current(), args, kwargs)
        if reason := call.why_uncompiled():
            return self._uncompiled(refusal(reason), args, kwargs)
        key = self._key(call)
        if key not in self.graphs:
            return self._first(call)
        if (graph := self.graphs[key]) is None:
            return self.program(*args, **kwargs)
        graph.calls += 1
        if graph.fusion is not None and graph.fusion.is_ready():
            self._use_fused(graph, graph.fusion, call)
        elif graph.calls >= FREQUENT and self._ends and not graph.is_tried:
            self._begin_fusion(graph, call)
        if graph.calls & (graph.calls - 1) == 0:
            return self._compared(graph, key, call)
        return self._replayed(graph, call)

    def _replayed(self, graph: TracedGraph, call: Call) -> Result:
        results, rebound = graph(call.state.tensors, call.arguments.tensors)
        if rebound:
            call.state.rebind(rebound)
        return results

    def fuse(self, seconds: float = math.inf) -> None:
        """Fuse graphs in the background from now on, if that pays within the next ``seconds`` of calls.

        A graph pays if its share of these seconds is several times the expected time of its compilation, or if it is
        in the cache. If a graph cannot be fused, :attr:`fusion` says why, and it is replayed.
        """
        self._ends = time.monotonic() + seconds

    def _begin_fusion(self, graph: TracedGraph, call: Call) -> None:
        graph.is_tried = True
        calls = sum(other.calls for other in self.graphs.values() if other is not None)
        seconds = (self._ends - time.monotonic()) * graph.calls / calls
        try:
            fusion = Fusion(graph.module, graph.chosen(call.state.tensors, call.arguments.tensors))
        except FusionError as error:
            if self.fused:  # otherwise nobody has asked for it
                self._tell_unfused(error)
            return
        try:
            if fusion.is_ready() or seconds > PAYS * fusion.expected_seconds:
                fusion.begin()
                graph.fusion, self.fusion = fusion, BEGUN
        except FusionError as error:
            self._tell_unfused(error)

    def _use_fused(self, graph: TracedGraph, fusion: Fusion, call: Call) -> None:
        """Let a graph run fused operations if they agree with the program and are faster."""
        graph.fusion = None
        try:
            fused = fusion.load()
            with call.left_as_it_was() as before:
                tensors = graph.chosen(call.state.tensors, call.arguments.tensors)
                ratio = _ratio(graph.run, fused, tensors)
                call.state.restore_bindings()
                before.restore()
                graph.run = fused
                self._compare(graph, call, before, (0, 1, 2, 3))
            if ratio <= 1:
                raise FusionError(f"it would take {1 / ratio:.2f} times as long")
            self.fusion = f"the step is fused now and takes {1 / ratio:.2f} of the time of the replayed one"
        except Exception as error:  # of any kind: the replay can always continue
            graph.run = graph.module.forward
            if isinstance(error, CompileError):
                error = FusionError("its results differ from the program's by more than rounding")
            elif not isinstance(error, FusionError):
                error = FusionError(f"{type(error).__name__} while the fused graph runs")
            self._tell_unfused(error)

    def _tell_unfused(self, error: FusionError) -> None:
        self.fusion = f"the step is replayed and not fused: {error}"
        if self.fused:
            warnings.warn(self.fusion, stacklevel=2)

    def _uncompiled(self, error: CompileError, args: tuple, kwargs: dict) -> Result:
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
        roots, state = dict(self.roots()), self._state
        same = len(roots) == len(self._rooted) and all(roots[name] is self._rooted.get(name) for name in roots)
        if state is None or not same or not state.unchanged():
            state = self._walk(roots)
            self._rooted, self._state = roots, state
        return state

    def _walk(self, roots: Mapping[str, object] | None = None) -> State:
        roots = dict(self.roots()) if roots is None else roots
        hidden = {f"a hidden {type(module).__name__}": module for module in self._found}
        return State({**roots, **hidden, "torch's global hooks": HOOKS})

    def _key(self, call: Call) -> tuple:
        if call.state is not self._numbered:  # signatures are long, so keys use their numbers
            self._numbered = call.state
            self._number = self._numbers.setdefault(call.state.signature, len(self._numbers))
        return self._number, call.arguments.signature, _settings()

    def _first(self, call: Call) -> Result:
        """Run the program itself, then trace it.

        If the first run creates objects that later runs use (lazy parameters, caches, the sites of an AutoGuide), the
        trace starts from the state after this run, otherwise from the state before it.
        """
        self._tell_why(call)
        start = call.snapshot()
        with modules_that_run() as ran:
            results = _detached(self.program(*call.args, **call.kwargs))
        known = {id(module) for module in self._found}
        self._found += [m for m in ran if not call.state.holds(m) and id(m) not in known]
        settled = self._walk()
        end = Snapshot.of(settled, call.arguments)
        same = settled.signature == call.state.signature
        if same:
            call.state.restore_bindings()
            start.restore()
        again = call.repeated(call.state if same else settled)
        graph = None
        try:
            call.check_arguments()
            graph = self._traced(again)
        except CompileError as error:
            if not self.fallback:
                call.restore_bindings()
                start.restore()
                raise
            self._give_up(error)
        self._keep(self._key(again), graph)
        if same and graph is not None:  # so resumed training is identical to uninterrupted training
            call.arguments.restore_bindings()
            self._state = call.state
            return self._replayed(graph, call)
        settled.restore_bindings()
        end.restore()
        self._state = settled
        return results

    def _keep(self, key: tuple, graph: TracedGraph | None) -> None:
        if len(self.graphs) >= MANY:
            self.graphs.pop(next(iter(self.graphs)))
        if len(self._numbers) > 4 * MANY:
            self._numbers = {state: number for state, number in self._numbers.items() if number >= key[0] - MANY}
        self.graphs[key] = graph

    def _traced(self, call: Call) -> TracedGraph:
        """Trace a graph of a call and compare it with the program. The state is restored."""
        with call.left_as_it_was() as before:
            try:
                expected = self._outcome(call, before, 1)  # raises if no graph could be correct
            except CompileError:
                raise
            except Exception as error:  # the first run succeeded, so the program cannot be repeated
                raise explained(error, "a second run with the same arguments fails") from error
            torch.manual_seed(torch.initial_seed() + 2)
            graph = TracedGraph(self.program, call, self._walk)
            call.state.restore_bindings()
            before.restore()
            graph.check(call)
            self._compare(graph, call, before, (1, 2), expected)
            if all(tensor.is_cuda for tensor in graph.chosen(call.state.tensors, call.arguments.tensors)):
                graph.capture(call.state.tensors, call.arguments.tensors)
        return graph

    def _compared(self, graph: TracedGraph, key: tuple, call: Call) -> Result:
        """Compare graph and program, then replay the graph and return its results."""
        try:
            with call.left_as_it_was() as before:
                self._compare(graph, call, before, (0, 1))
        except CompileError as error:
            if graph.is_fused:  # it may be the fused operations
                graph.run = graph.module.forward
                self._tell_unfused(FusionError("its results came to differ from the program's by more than rounding"))
                return self._compared(graph, key, call)
            if (since := graph.calls // 2) > 1:
                error = CompileError(
                    f"{str(error).removesuffix('.')} (found at call {graph.calls}, last compared at call {since}; "
                    f"calls {since + 1} to {graph.calls - 1} may have used stale values)."
                )
            self.graphs[key] = None
            return self._uncompiled(error, call.args, call.kwargs)
        return self._replayed(graph, call)

    def _compare(
        self,
        graph: TracedGraph,
        call: Call,
        before: Snapshot,
        seeds: tuple[int, ...],
        expected: Outcome | None = None,
    ) -> None:
        """Run graph and program from the same state; raises if they differ for all seeds.

        ``seeds`` are offsets to the current seed. A difference for only some seeds may be caused by rounding that flips
        a discrete choice. ``expected`` is the program's outcome for the first seed, if known.
        """
        amplified = AMPLIFIED if graph.is_fused else 1.0
        differences = []
        for seed in seeds:
            if expected is None:
                expected = self._outcome(call, before, seed)
            got = self._outcome(call, before, seed, graph)
            tensors = [value for _, value in before.tensors]
            found = difference(expected, got, tensors, call.tensor_name, self.tolerance, amplified)
            differences.append(max(distributed.all_gather_object(found)))  # all ranks must take the same decision
            if not differences[-1]:
                return
            expected = None
        raise CompileError(
            f"the replayed step differs from the program in {differences[0]}: the program reads state that cannot be "
            "reached from model and guide, or its sites depend on a random choice."
        )

    def _outcome(self, call: Call, before: Snapshot, seed: int, graph: TracedGraph | None = None) -> Outcome:
        """The outcome of one run of the graph or, without ``graph``, of the program.

        The run starts from the state ``before``, with the offset ``seed`` to its seed. The state is restored.
        """
        if seed:
            torch.manual_seed(torch.initial_seed() + seed)
        if graph is None:
            results, tensors = self._checked_run(call)
        else:
            results, rebound = graph(call.state.tensors, call.arguments.tensors)
            tensors = [rebound.get(index, tensor) for index, tensor in enumerate(call.state.tensors)]
        tensors = [tensor.detach().clone() for tensor in (*tensors, *call.arguments.tensors)]
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(_detached(results))]
        outcome = Outcome(leaves, tensors, get_rng_state())
        call.state.restore_bindings()
        before.restore()
        return outcome

    def _checked_run(self, call: Call) -> tuple[Result, list[Tensor]]:
        """The results of a run of the program and the state's tensors after it.

        Raises CompileError if the run does something that no graph could repeat.
        """
        state = call.state
        drawn, seed = _other_generators(state), torch.initial_seed()
        memory = [tensor.data_ptr() for tensor in state.tensors]
        results = self.program(*call.args, **call.kwargs)
        if _other_generators(state) != drawn:
            place = line_that_draws(lambda: _other_generators(state), self.program, *call.args, **call.kwargs)
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
        call.check_arguments()
        for index, (tensor, pointer) in enumerate(zip(state.tensors, memory, strict=True)):
            if after.tensors[index] is tensor and tensor.data_ptr() != pointer:
                raise refusal(
                    f"the program moves {state.tensor_name(index)} to other memory, but a replay would not; write "
                    "to it in place"
                )
        return results, after.tensors

    def _tell_why(self, call: Call) -> None:
        """Warn about the cause of a new trace: a changed number (once), or any change after many traces."""
        self.traces += 1
        if self._last is not None:
            known, given = self._last.state, self._last.arguments
            numbers = call.arguments.changed_numbers(given) if known.signature == call.state.signature else []
            if numbers and not (self._told or self._warned):
                self._told = True
                warnings.warn(
                    f"the program is traced again because a number changed: {', '.join(numbers)}. Pass numbers that "
                    "vary as tensors, whose values are read at each call without a new trace.",
                    stacklevel=4,
                )
            elif self.traces > MANY:
                changed = known.difference(call.state) or given.difference(call.arguments) or "torch's settings"
                warnings.warn(
                    f"the program has been traced {self.traces} times, now because of a change in {changed}: keep "
                    "shapes and plain values the same in all calls, and pass values that vary as tensors.",
                    stacklevel=4,
                )
        self._last = call


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


@torch.no_grad()
def _ratio(replayed: Callable, fused: Callable, tensors: list[Tensor]) -> float:
    """The speed of the fused operations relative to the replayed ones, on the same inputs, which may be changed."""
    seconds: dict[Callable, list[float]] = {replayed: [], fused: []}
    for _ in range(TIMED):
        for run in seconds:
            start = time.perf_counter()
            run(*tensors)
            seconds[run].append(time.perf_counter() - start)
    return statistics.median(seconds[replayed]) / statistics.median(seconds[fused])


def _detached(results: Result) -> Result:
    leaves, spec = tree_flatten(results)
    return tree_unflatten([leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


def _other_generators(state: State) -> tuple:
    """The states of all generators except torch's, in a comparable form."""
    states = get_rng_state()
    own = [values for values in state.get_rng_state() if not isinstance(values, Tensor)]
    return packed(named({"python": states["python"], "numpy": states["numpy"]})), repr(own)
