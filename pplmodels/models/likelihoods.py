"""Likelihoods p(x | z): modules that map a decoder's output to a distribution over images or vectors."""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from pplmodels.distributions import DiscretizedLogisticMixture


class Likelihood(nn.Module):
    """Base class of likelihoods."""

    def num_params(self, channels: int) -> int:
        """The number of decoder outputs per pixel, by default one per channel."""
        return channels


class ImageLikelihood(Likelihood):
    """Base class of likelihoods of images with ``channels`` channels.

    ``kind`` is the kind of log p(x | z), which determines the transform of 8-bit images
    (:mod:`pplmodels.data.transforms`): ``"binary"`` for the probability of pixels 0 and 1, ``"mass"`` for that of the
    256 levels, given as x in [0, 1], and ``"density"`` for a density of dequantized x in [0, 1].
    """

    kind: Literal["binary", "mass", "density"]

    def __init__(self, channels: int = 1):
        super().__init__()


class Bernoulli(ImageLikelihood):
    """Pixels that are 0 or 1. The decoder outputs their logits, ``(..., C, H, W)``."""

    kind = "binary"

    def forward(self, logits: Tensor) -> TorchDistributionMixin:
        """p(x | z), event shape (C, H, W)."""
        return dist.Bernoulli(logits=logits).to_event(3)


class DiagonalNormal(Likelihood):
    """Vectors. The decoder outputs mean and unconstrained scale of each dimension, ``(..., 2 D)``."""

    def num_params(self, channels: int) -> int:
        """A mean and an unconstrained scale per dimension."""
        return 2 * channels

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        """p(x | z), event shape (D)."""
        loc, raw = output.chunk(2, -1)
        return dist.Normal(loc, softplus(raw)).to_event(1)


class LogitNormal(ImageLikelihood):
    """Normal noise around the decoder's output in logit space, as a density of the intensities x in [0, 1].

    .. code-block:: text

        y = logit(squeeze / 2 + (1 - squeeze) x) ~ N(decoder's output, scale^2)
        log p(x) = log N(y) + log dy/dx

    The Jacobian is included, so bits per dimension are comparable with those of other likelihoods.

    Arguments:
        channels: C; a learned scale has one value per channel.
        learned_scale: whether to learn the scale instead of using 1.
        squeeze: keeps y finite at 0 and 1 (RealNVP, Dinh et al. 2017, arXiv 1605.08803, section 4.1).
    """

    kind = "density"

    def __init__(self, channels: int, learned_scale: bool = True, squeeze: float = 0.1):
        super().__init__()
        log_scale = torch.zeros(channels, 1, 1)
        self.log_scale = nn.Parameter(log_scale) if learned_scale else None
        self.squeeze = squeeze

    def forward(self, loc: Tensor) -> TorchDistributionMixin:
        """p(x | z), event shape (C, H, W)."""
        scale = torch.ones_like(loc) if self.log_scale is None else self.log_scale.exp().expand(loc.shape)
        unsqueeze = transforms.AffineTransform(-self.squeeze / (2 - 2 * self.squeeze), 1 / (1 - self.squeeze))
        y = dist.Normal(loc, scale)
        return dist.TransformedDistribution(y, [transforms.SigmoidTransform(), unsqueeze]).to_event(3)


class UnitLogitNormal(LogitNormal):
    """:class:`LogitNormal` with scale 1."""

    def __init__(self, channels: int):
        super().__init__(channels, learned_scale=False)


class UnitNormal(ImageLikelihood):
    """Normal noise of unit variance around the decoder's output, for images scaled to [-1, 1].

    As a density of the intensities x in [0, 1]: 2 x - 1 ~ N(decoder's output, 1). The log-density is minus half the
    squared error plus a constant. Bits per dimension are finite but poor, because the noise is as wide as the range.
    """

    kind = "density"

    def forward(self, loc: Tensor) -> TorchDistributionMixin:
        """p(x | z), event shape (C, H, W)."""
        y = dist.Normal(loc, torch.ones_like(loc))
        return dist.TransformedDistribution(y, [transforms.AffineTransform(0.5, 0.5)]).to_event(3)


class DiscretizedLogistic(ImageLikelihood):
    """Independent discretized logistics over the 256 levels of each pixel and channel.

    The decoder outputs the means, as intensities in [-1, 1]. There is one learned scale per channel (as in Kingma et
    al. 2016, arXiv 1606.04934). Because all pixels share it, training resembles that with squared errors, whose weight
    grows as they decrease.

    Arguments:
        channels: C.
        start: initial scale.
    """

    kind = "mass"

    def __init__(self, channels: int, start: float = 0.2):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), math.log(start)))

    def forward(self, loc: Tensor) -> TorchDistributionMixin:
        """p(x | z), event shape (C, H, W)."""
        return DiscretizedLogisticMixture.single(loc, self.log_scale)


class LogisticMixture(ImageLikelihood):
    """A mixture of discretized logistics over the 256 levels (:class:`DiscretizedLogisticMixture`).

    Arguments:
        channels: C.
        components: K.
    """

    kind = "mass"

    def __init__(self, channels: int, components: int = 3):
        super().__init__()
        self.channels, self.components = channels, components

    def num_params(self, channels: int) -> int:
        """Weights, means, scales and coefficients per pixel."""
        return self.components * DiscretizedLogisticMixture.per_component(channels)

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        """p(x | z), event shape (C, H, W)."""
        return DiscretizedLogisticMixture(output, self.channels)


LIKELIHOODS: dict[str, type[ImageLikelihood]] = {  # constructed from the number of channels
    "bernoulli": Bernoulli,
    "logit-normal": UnitLogitNormal,
    "logit-normal-learned": LogitNormal,
    "unit-normal": UnitNormal,
    "logistic": DiscretizedLogistic,
    "mixture": LogisticMixture,
}
