"""Maps of discrete values, each given those before it."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class AutoregressiveCategorical(TorchDistribution):
    """p(k) = prod_ij p(k_ij | the positions before it in raster order), event shape ``(H, W)``, int64.

    ``log_prob`` is one pass through the network, a sample one pass bit by bit (:mod:`pplmodels.nn.masked_conv`).

    Arguments:
        network: from maps ``(B, H, W)`` to logits ``(B, K, H, W)``, with ``steps``.
        shape: (H, W).
        levels: K.
        temperature: of samples, no part of ``log_prob``: logits are divided by it; at 0 the likeliest value is taken.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        levels: int,
        temperature: float = 1.0,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ):
        self.network, self.levels, self.temperature = network, levels, temperature
        super().__init__(torch.Size(batch_shape), torch.Size(shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """0..K-1."""
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 2)

    def expand(self, batch_shape, _instance=None) -> "AutoregressiveCategorical":
        """The same distribution for more maps."""
        return AutoregressiveCategorical(
            self.network, self.event_shape, self.levels, self.temperature, batch_shape, validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """``(...)`` of ``value (..., H, W)``, once for each map whatever the batch shape is."""
        if self._validate_args:
            self._validate_sample(value)
        maps = value.reshape(-1, *self.event_shape)
        log_prob = -cross_entropy(self.network(maps), maps, reduction="none").sum((-2, -1)).view(value.shape[:-2])
        return log_prob.expand(torch.broadcast_shapes(self.batch_shape, log_prob.shape))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Maps ``(..., H, W)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        steps = self.network.steps(shape.numel(), *self.event_shape)
        codes, logits = [], next(steps)
        while logits is not None:
            codes.append(self._choose(logits))
            try:
                logits = steps.send(codes[-1])
            except StopIteration:
                logits = None
        return torch.stack(codes, -1).view(*shape, *self.event_shape)

    def _choose(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.distributions.Categorical(logits=logits / self.temperature, validate_args=False).sample()
