"""A call of a program, with everything that it reads."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pplmodels.infer.compile.state import Snapshot, State, kind_of
from pplmodels.infer.compile.tracing import refusal

ARRAY = 64  # maximum size of NumPy arrays in arguments, which become part of the signature


class Call:
    """The state and the arguments of a call of a program.

    Attributes:
        state: everything that the program reads besides its arguments.
        args, kwargs: the arguments themselves.
        arguments: everything that can be reached from the arguments, but not from ``state``.
    """

    def __init__(self, state: State, args: tuple, kwargs: dict):
        self.state, self.args, self.kwargs = state, args, kwargs
        self.arguments = self._reached()

    def _reached(self) -> State:
        numbered = {f"argument {number}": value for number, value in enumerate(self.args, 1)}
        named = {f"argument {name}": value for name, value in self.kwargs.items()}
        return State({**numbered, **named}, known=self.state)

    def tensor_name(self, index: int) -> str:
        """The name of a tensor from its index in the list of the state's and then the arguments' tensors."""
        number = len(self.state.tensors)
        return self.state.tensor_name(index) if index < number else self.arguments.tensor_name(index - number)

    def why_uncompiled(self) -> str:
        """The reason why a call with these objects cannot be compiled; "" if there is none."""
        state, arguments = self.state, self.arguments
        if arrays := arguments.large_arrays(ARRAY):
            names = arguments.names(arrays)
            return f"{names} is a NumPy array, whose values would be constants of the graph; pass torch.from_numpy(...)"
        if arguments.unsupported:
            return f"{arguments.names(arguments.unsupported)} is not a plain tensor"
        for found in (state, arguments):
            if found.iterators:
                return (
                    f"{found.names(found.iterators)} is an iterator, but a replay would not advance it; take the next "
                    "item outside of the step and pass it as an argument"
                )
        return ""

    def check_arguments(self) -> None:
        """Raise :class:`CompileError` if the program has changed the contents of its arguments."""
        after = self._reached()
        if after.signature != self.arguments.signature or not self.arguments.unchanged():
            what = self.arguments.difference(after) or "an argument"
            raise refusal(
                f"the program modifies {what}, but a replay would not; store what the program computes in an attribute"
            )

    def snapshot(self) -> Snapshot:
        """A snapshot of state and arguments."""
        return Snapshot.of(self.state, self.arguments)

    def restore_bindings(self) -> None:
        """Restore what the objects of state and arguments held."""
        self.state.restore_bindings()
        self.arguments.restore_bindings()

    @contextmanager
    def left_as_it_was(self) -> Iterator[Snapshot]:
        """Yields a snapshot of state and arguments, and restores it on exit."""
        before = self.snapshot()
        try:
            yield before
        finally:
            self.restore_bindings()
            before.restore()

    def repeated(self, state: State) -> "Call":
        """The same call from another state, with the arguments' tensors replaced by clones.

        The first run may have cached results by the identity of its arguments, as Pyro's transforms do. A second run
        with the same tensors would use this cache, while the next step will not. Tensors are not cloned if they are
        part of the state, if they share memory, or if a clone would have other strides.
        """
        leaves = tree_leaves((self.args, self.kwargs))
        tensors = [leaf for leaf in leaves if type(leaf) is Tensor and leaf.layout is torch.strided]
        memory = Counter(t.untyped_storage().data_ptr() for t in {id(t): t for t in tensors}.values())
        copies = {}
        for tensor in tensors:
            copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            if memory[tensor.untyped_storage().data_ptr()] == 1 and not self.state.holds(tensor) and tensor.is_leaf:
                copies[id(tensor)] = copy if kind_of(copy) == kind_of(tensor) else tensor
        args, kwargs = tree_map(lambda leaf: copies.get(id(leaf), leaf), (self.args, self.kwargs))
        return Call(state, args, kwargs)
