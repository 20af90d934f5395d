"""Autograd graphs of scalars: their leaves, and scalars with given gradients."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def leaves(scalar: Tensor) -> list[Tensor]:
    """The leaf tensors of a scalar's autograd graph."""
    waiting, seen, found = [scalar.grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


class Gradients:
    """Sums of gradients with respect to leaf tensors, which become the gradients of one scalar."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, scalar: Tensor, others: Iterable[Tensor] = ()) -> list[Tensor]:
        """Add the gradients of ``scalar`` with respect to its leaves.

        ``others`` are leaves whose gradients are returned instead of added.
        """
        apart = list(others)
        if not scalar.requires_grad:
            return [torch.zeros_like(tensor) for tensor in apart]
        known = {id(tensor) for tensor in apart}
        found = [leaf for leaf in leaves(scalar) if id(leaf) not in known]
        # The graph may continue outside of the step, where it has to survive for the gradients of other scalars.
        gradients = torch.autograd.grad(scalar, [*found, *apart], retain_graph=True, allow_unused=True)
        for leaf, gradient in zip(found, gradients[: len(found)], strict=True):
            if gradient is not None:
                _, total = self._sums.get(id(leaf), (leaf, None))
                self._sums[id(leaf)] = leaf, gradient if total is None else total + gradient
        return [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(apart, gradients[len(found) :], strict=True)
        ]

    def scalar(self, like: Tensor) -> Tensor:
        """A scalar of the kind of ``like`` whose gradients are the sums."""
        return sum((torch.sum(leaf * gradient) for leaf, gradient in self._sums.values()), like.new_zeros(()))


def partials(scalar: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a scalar with respect to some tensors, 0 where it does not depend on one."""
    if not (scalar.requires_grad and tensors):
        return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    gradients = torch.autograd.grad(scalar, list(tensors.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True)
    }
