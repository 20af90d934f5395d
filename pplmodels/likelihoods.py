"""p(x | z): what a decoder's output means for what was observed.

Each is a module that is called with the decoder's output and returns a distribution; ``outputs(channels)`` says how
many numbers it needs a pixel. What a likelihood is about has to be read accordingly (:mod:`pplmodels.data.reading`):
``bernoulli``, ``thresholded`` for :class:`Bernoulli`, ``dequantised`` for :class:`LogitNormal` and
:class:`PixelNormal`, which are densities on [0, 1], and ``intensities`` for :class:`Logistic` and
:class:`LogisticMixture`, which are distributions over the 256 levels.
"""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor, nn
from torch.nn.functional import softplus

from pplmodels.distributions import DiscretizedLogisticMixture


class Bernoulli(nn.Module):
    """Pixels that are 0 or 1; the decoder gives their logits, ``(..., C, H, W)``."""

    def outputs(self, channels: int) -> int:
        """One logit a pixel and channel."""
        return channels

    def forward(self, logits: Tensor) -> dist.Distribution:
        """p(x | z), event shape (C, H, W)."""
        return dist.Bernoulli(logits=logits).to_event(3)


class DiagonalNormal(nn.Module):
    """Vectors; the decoder gives mean and scale of each coordinate, ``(..., 2 D)``."""

    def outputs(self, channels: int) -> int:
        """A mean and an unconstrained scale a coordinate."""
        return 2 * channels

    def forward(self, output: Tensor) -> dist.Distribution:
        """p(x | z), event shape (D)."""
        loc, raw = output.chunk(2, -1)
        return dist.Normal(loc, softplus(raw)).to_event(1)


class LogitNormal(nn.Module):
    """Normal noise around the decoder's output in logit space, as a density of the intensities x in [0, 1].

    .. code-block:: text

        y = logit(squeeze / 2 + (1 - squeeze) x) ~ N(decoder's output, scale^2)
        log p(x) = log N(y) + log dy/dx

    The Jacobian is counted, so bits per dimension are comparable with those of other likelihoods.

    Arguments:
        channels: C; a learned scale has one value a channel.
        learned_scale: learn it, instead of 1.
        squeeze: keeps y finite at 0 and 1 (RealNVP, Dinh et al. 2017, arXiv 1605.08803, section 4.1).
    """

    def __init__(self, channels: int, learned_scale: bool = True, squeeze: float = 0.1):
        super().__init__()
        log_scale = torch.zeros(channels, 1, 1)
        self.log_scale = nn.Parameter(log_scale) if learned_scale else None
        self.squeeze = squeeze

    def outputs(self, channels: int) -> int:
        """A mean a pixel and channel."""
        return channels

    def forward(self, loc: Tensor) -> dist.Distribution:
        """p(x | z), event shape (C, H, W)."""
        scale = torch.ones_like(loc) if self.log_scale is None else self.log_scale.exp().expand(loc.shape)
        unsqueeze = transforms.AffineTransform(-self.squeeze / (2 - 2 * self.squeeze), 1 / (1 - self.squeeze))
        y = dist.Normal(loc, scale)
        return dist.TransformedDistribution(y, [transforms.SigmoidTransform(), unsqueeze]).to_event(3)


class PixelNormal(nn.Module):
    """Normal noise of unit variance around the decoder's output, of images scaled to [-1, 1].

    As a density of the intensities x in [0, 1]: 2 x - 1 ~ N(decoder's output, 1). Its logarithm is minus half the
    squared error and a constant: bits per dimension are finite but poor, as the noise is as wide as the images.
    """

    def outputs(self, channels: int) -> int:
        """A mean a pixel and channel."""
        return channels

    def forward(self, loc: Tensor) -> dist.Distribution:
        """p(x | z), event shape (C, H, W)."""
        y = dist.Normal(loc, torch.ones_like(loc))
        return dist.TransformedDistribution(y, [transforms.AffineTransform(0.5, 0.5)]).to_event(3)


class Logistic(nn.Module):
    """A discretised logistic over the 256 levels of each pixel and channel, by itself.

    The decoder gives the means, as intensities in [-1, 1]; the scale is learned, one a channel (as in Kingma et
    al. 2016, arXiv 1606.04934). As all pixels share it, the decoder learns what it would of squared errors, whose
    weight grows as they shrink.

    Arguments:
        channels: C.
        start: of the scale.
    """

    def __init__(self, channels: int, start: float = 0.2):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), math.log(start)))

    def outputs(self, channels: int) -> int:
        """A mean a pixel and channel."""
        return channels

    def forward(self, loc: Tensor) -> dist.Distribution:
        """p(x | z), event shape (C, H, W)."""
        return DiscretizedLogisticMixture.independent(loc, self.log_scale)


class LogisticMixture(nn.Module):
    """A mixture of discretised logistics over the 256 levels (:class:`DiscretizedLogisticMixture`).

    Arguments:
        channels: C.
        components: K.
    """

    def __init__(self, channels: int, components: int = 3):
        super().__init__()
        self.channels, self.components = channels, components

    def outputs(self, channels: int) -> int:
        """Weights, means, scales and coefficients a pixel."""
        return self.components * DiscretizedLogisticMixture.per_component(channels)

    def forward(self, output: Tensor) -> dist.Distribution:
        """p(x | z), event shape (C, H, W)."""
        return DiscretizedLogisticMixture(output, self.channels)


LIKELIHOODS = {  # of images, by the number of their channels
    "bernoulli": lambda channels: Bernoulli(),
    "normal": lambda channels: LogitNormal(channels, learned_scale=False),
    "normal-learned": LogitNormal,
    "gaussian": lambda channels: PixelNormal(),
    "logistic": Logistic,
    "mixture": LogisticMixture,
}
