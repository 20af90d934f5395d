"""Autoregressive distributions over maps of discrete values."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar, Protocol

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import cross_entropy

from pplmodels.nn.masked_conv import Steps


class RasterOrderNetwork(Protocol):
    """A network whose logits at a position depend only on earlier positions (:mod:`pplmodels.nn.masked_conv`)."""

    __call__: Callable[..., Tensor]  # from maps (B, H, W), and labels (B) if any, to logits (B, K, H, W)

    @property
    def steps(self) -> Callable[..., Steps]:
        """From the number, height and width of maps, and their labels if any, to the logits of each position."""


class AutoregressiveCategorical(TorchDistribution):
    """p(k) = prod_ij p(k_ij | the positions before it in raster order), event shape ``(H, W)``, int64.

    ``log_prob`` takes one pass through the network. Sampling takes one pass in total, position by position
    (:mod:`pplmodels.nn.masked_conv`).

    Arguments:
        network: a :class:`RasterOrderNetwork`.
        shape: (H, W).
        levels: K.
        temperature: divisor of the logits in sampling; 0 takes the most probable value. It does not affect
            ``log_prob``.
        label: int64, the class of each map, if the network is class-conditional.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    def __init__(
        self,
        network: RasterOrderNetwork,
        shape: Sequence[int],
        levels: int,
        temperature: float = 1.0,
        label: Tensor | None = None,
        batch_shape: Sequence[int] | None = None,
        validate_args: bool | None = None,
    ):
        self.network, self.levels, self.temperature, self.label = network, levels, temperature, label
        if batch_shape is None:
            batch_shape = () if label is None else label.shape
        super().__init__(torch.Size(batch_shape), torch.Size(shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """0..K-1."""
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 2)

    def expand(self, batch_shape, _instance=None) -> "AutoregressiveCategorical":
        """The same distribution for more maps."""
        settings = (self.network, self.event_shape, self.levels, self.temperature, self.label)
        return AutoregressiveCategorical(*settings, batch_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p ``(...)`` of ``value (..., H, W)``, computed once per map, independent of the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        if self.label is not None:
            value = value.expand(*torch.broadcast_shapes(value.shape[:-2], self.label.shape), *self.event_shape)
        maps = value.reshape(-1, *self.event_shape)
        logits = self.network(maps, *self._labels(value.shape[:-2]))
        log_prob = -cross_entropy(logits, maps, reduction="none").sum((-2, -1)).view(value.shape[:-2])
        return log_prob.expand(torch.broadcast_shapes(self.batch_shape, log_prob.shape))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Maps ``(..., H, W)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        steps = self.network.steps(shape.numel(), *self.event_shape, *self._labels(shape))
        logits = next(steps)
        codes = [self._choose(logits)]
        with suppress(StopIteration):  # after the last position
            while True:
                codes.append(self._choose(steps.send(codes[-1])))
        return torch.stack(codes, -1).view(*shape, *self.event_shape)

    def _labels(self, shape: torch.Size) -> tuple[Tensor, ...]:
        return () if self.label is None else (self.label.expand(shape).reshape(-1),)

    def _choose(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.distributions.Categorical(logits=logits / self.temperature, validate_args=False).sample()
