"""Common random numbers: runs of a program side by side that differ only where their inputs differ."""

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FILLS = (aten.normal_, aten.uniform_, aten.exponential_, aten.cauchy_, aten.log_normal_)
FACTORIES = (aten.rand, aten.randn)


class SharedNoise(TorchDispatchMode):
    """Inside this context, random operations draw once for all entries of the leading dimensions ``lead``.

    Entries with equal parameters get equal samples, and entries with similar parameters get similar ones. This applies
    to uniform, normal and exponential noise, which most distributions transform, and to Bernoulli and multinomial
    samples. Other operations (gamma, Dirichlet, Poisson and binomial samples) draw independently. The distribution of
    each entry is the same in both cases.
    """

    def __init__(self, lead: tuple[int, ...]):
        super().__init__()
        self.lead = lead

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Draw for one entry and expand the result, where this is possible."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and (shape := self._shared(func, args)) is not None:
            return _drawn(func, shape, args, kwargs)
        return func(*args, **kwargs)

    def _shared(self, func, args: tuple) -> tuple[int, ...] | None:
        """The shape of one entry, or None if the operation cannot share its noise."""
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else tuple(args[0] if args else ())
        packet = func.overloadpacket
        if packet is aten.multinomial:  # the batch is flattened
            entries = math.prod(self.lead)
            shared = len(shape) == 2 and args[1] == 1 and shape[0] % entries == 0
            return (shape[0] // entries, shape[1]) if shared else None
        known = packet in (*FILLS, *FACTORIES) or func in (aten.normal.Tensor_Tensor, aten.bernoulli.default)
        return shape[len(self.lead) :] if known and shape[: len(self.lead)] == self.lead else None


def _drawn(func, shape: tuple[int, ...], args: tuple, kwargs: dict) -> Tensor:
    """The result of an operation, whose noise has the ``shape`` of one entry."""
    packet, first = func.overloadpacket, args[0]
    if packet in FACTORIES:
        return func(shape, *args[1:], **kwargs).expand(first).contiguous()
    if packet in FILLS:
        return first.copy_(func(first.new_empty(shape), *args[1:], **kwargs))
    if func is aten.normal.Tensor_Tensor:
        return first + args[1] * torch.empty_like(first[(0,) * (first.dim() - len(shape))]).normal_()
    if func is aten.bernoulli.default:
        return (first.new_empty(shape).uniform_() < first).to(first.dtype)
    races = first.new_empty(shape).exponential_()  # k with the smallest of E_k / p_k has probability p_k
    return (first.view(-1, *shape) / races).argmax(-1).view(-1, 1)
