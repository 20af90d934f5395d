"""Creating and running a traced graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pplmodels.infer.compile.call import Call
from pplmodels.infer.compile.fused import Fusion
from pplmodels.infer.compile.passes import simplified
from pplmodels.infer.compile.state import Snapshot, State
from pplmodels.infer.compile.tracing import explained, refusal, refusing

aten = torch.ops.aten


class TracedGraph:
    """A traced graph, which is called with the tensors of state and arguments.

    Attributes:
        calls: the number of calls, counted by the caller.
        run: runs the graph: operation by operation or with fused operations.
        fusion: the fusion that has begun, but whose result does not run yet.
        is_tried: whether a fusion has begun or was found not to pay.
    """

    def __init__(self, program: Callable, call: Call, walk: Callable[[], State]):
        tensors = [*call.state.tensors, *call.arguments.tensors]
        self.calls = 1
        self.spec: TreeSpec
        self.constants: list[object]

        def flat(*inputs):  # these are identical to the program's tensors, which make_fx tracks by identity
            with refusing(tensors):
                results, self.spec = tree_flatten(program(*call.args, **call.kwargs))
            self.constants = [None if isinstance(result, Tensor) else result for result in results]
            pairs = enumerate(zip(call.state.tensors, walk().tensors, strict=True))
            put = {index: found for index, (tensor, found) in pairs if found is not tensor}
            self.rebound = list(put)  # indices of tensors that the program replaces
            return [result.detach() if isinstance(result, Tensor) else None for result in (*results, *put.values())]

        try:
            # one fake mode for all nodes: without this context make_fx creates one per node, half of the tracing time
            with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
                module = make_fx(flat)(*tensors)
        except Exception as error:
            raise explained(error) from error
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        attached = [any(user.target is not aten.detach.default for user in node.users) for node in placeholders]
        self.cut = [i for i, t in enumerate(tensors) if t.grad_fn is not None and attached[i]]
        module, self.used = simplified(module, tensors)
        self.requires_grad = [tensors[index].requires_grad for index in self.rebound]
        self.module = module
        self.run: Callable[..., Sequence] = module.forward
        self.fusion: Fusion | None = None
        self.is_tried = False
        self.captured: torch.cuda.CUDAGraph | None = None

    def check(self, call: Call) -> None:
        """Raise an error if the graph cannot reproduce what the program does with a tensor."""
        for index in self.cut:
            raise refusal(
                f"{call.tensor_name(index)} was computed outside of the step and requires a gradient, but a replay "
                "would not continue the backward pass there; detach it"
            )
        for index in self.rebound:
            if not call.state.can_rebind(index):
                raise refusal(
                    f"the program replaces the tensor {call.state.tensor_name(index)}, which is not an attribute, a "
                    "variable, or an entry of a list or dict"
                )

    def chosen(self, state: list[Tensor], arguments: list[Tensor]) -> list[Tensor]:
        """The tensors that the graph reads or writes."""
        tensors = [*state, *arguments]
        return [tensors[index] for index in self.used]

    @property
    def is_fused(self) -> bool:
        """Whether fused operations run."""
        return self.run != self.module.forward

    @torch.no_grad()
    def capture(self, state: list[Tensor], arguments: list[Tensor]) -> None:
        """Capture the graph's kernels as a CUDA graph, with static buffers for arguments and results.

        The state's tensors are used in place. If the memory of one has moved, the kernels are captured again.
        """
        number = sum(index < len(state) for index in self.used)
        tensors = self.chosen(state, arguments)
        self.addresses = [tensor.data_ptr() for tensor in tensors[:number]]
        self.buffers = [tensor.clone() for tensor in tensors[number:]]
        inputs = [*tensors[:number], *self.buffers]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        before = Snapshot(inputs)  # the runs below have the side effects of the graph
        with torch.cuda.stream(side):  # libraries are initialized outside of the capture
            self.run(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            self.results = self.run(*inputs)
        before.restore()
        self.captured = captured

    @torch.no_grad()
    def __call__(self, state: list[Tensor], arguments: list[Tensor]) -> tuple:
        """The program's results, and the new tensors that it puts into the state, by their indices."""
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
