"""A distribution of angles with reparameterized samples."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

EVEN = 8.0  # scale in radians at which the distribution is uniform up to 1e-13
WIDE = 1.5  # scale from which the Fourier series needs fewer terms


class WrappedNormal(TorchDistribution):
    """A normal wrapped around the circle: an angle in [-pi, pi] with reparameterized samples.

    .. code-block:: text

        p(a) = sum_k N(a + 2 pi k; loc, scale^2) = (1 + 2 sum_{n>=1} exp(-n^2 scale^2 / 2) cos n (a - loc)) / (2 pi)

    Of the two sums, the one that needs only a few terms for float32 precision is used. With a ``scale`` of at least
    :data:`EVEN`, the distribution is uniform. Source: Mardia & Jupp, Directional Statistics (2000), section 3.5.7.
    (The von Mises distributions of torch and Pyro have no reparameterized samples.)

    Arguments:
        loc: mean in radians, any real number.
        scale: standard deviation before wrapping, in radians.
    """

    arg_constraints: ClassVar[dict] = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.interval(-math.pi - 1e-6, math.pi + 1e-6)  # up to rounding
    has_rsample = True

    def __init__(self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "WrappedNormal":
        """The same with another batch shape."""
        new = self._get_checked_instance(WrappedNormal, _instance)
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        super(WrappedNormal, new).__init__(new.loc.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mode(self) -> Tensor:
        """The most probable angle."""
        return wrapped(self.loc)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A sample, ``(*sample_shape, *batch_shape)``, with derivative 1 with respect to ``loc``."""
        zeros = self.loc.new_zeros(self._extended_shape(torch.Size(sample_shape)))
        return wrapped(self.loc + self.scale.clamp(max=EVEN) * torch.normal(zeros, zeros + 1))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density in nats per radian."""
        if self._validate_args:
            self._validate_sample(value)
        off = wrapped(value - self.loc)
        narrow, wide = self.scale.clamp(max=WIDE), self.scale.clamp(min=WIDE)
        turns = 2 * math.pi * torch.arange(-1, 2, device=off.device, dtype=off.dtype)
        standard = (off.unsqueeze(-1) + turns) / narrow.unsqueeze(-1)
        few_turns = (-standard.square() / 2).logsumexp(-1) - narrow.log() - math.log(2 * math.pi) / 2
        orders = torch.arange(1, 4, device=off.device, dtype=off.dtype)
        weights = (-(orders * wide.unsqueeze(-1)).square() / 2).exp()
        few_waves = (1 + 2 * (weights * (orders * off.unsqueeze(-1)).cos()).sum(-1)).log() - math.log(2 * math.pi)
        return torch.where(self.scale < WIDE, few_turns, few_waves)


def wrapped(angle: Tensor) -> Tensor:
    """The equivalent angle in [-pi, pi]."""
    return angle - 2 * math.pi * (angle / (2 * math.pi)).round()
