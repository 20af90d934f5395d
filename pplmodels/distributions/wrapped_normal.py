"""Angles."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

EVEN = 8.0  # radians: a normal of this deviation is even round the circle to 1e-13
WIDE = 1.5  # from this deviation on the Fourier series is the shorter of two sums


class WrappedNormal(TorchDistribution):
    """A normal wrapped round the circle: an angle in [-pi, pi], reparameterised.

    .. code-block:: text

        p(a) = sum_k N(a + 2 pi k; loc, scale^2) = (1 + 2 sum_{n>=1} exp(-n^2 scale^2 / 2) cos n (a - loc)) / (2 pi)

    Both sums are used, each where a few terms give float32's precision. ``scale`` of :data:`EVEN` or more is the even
    distribution. Source: Mardia & Jupp, Directional Statistics (2000), section 3.5.7. (torch's and Pyro's von Mises
    has no reparameterised samples.)

    Arguments:
        loc: in radians, any real number.
        scale: deviation before wrapping, in radians.
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
        """The likeliest angle."""
        return wrapped(self.loc)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A sample, ``(*sample_shape, *batch_shape)``, whose slope in ``loc`` is 1."""
        zeros = self.loc.new_zeros(self._extended_shape(torch.Size(sample_shape)))
        return wrapped(self.loc + self.scale.clamp(max=EVEN) * torch.normal(zeros, zeros + 1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats a radian."""
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
    """The angle in [-pi, pi] that is the same up to whole turns."""
    return angle - 2 * math.pi * (angle / (2 * math.pi)).round()
