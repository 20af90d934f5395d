"""A mixture of discretized logistics for 8-bit images."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

LEVELS = 256
LEAST_LOG_SCALE = -7.0  # for intensities in [-1, 1], much narrower than one level


class DiscretizedLogisticMixture(TorchDistribution):
    """A mixture of logistics for each pixel, integrated over the width of each of the 256 levels.

    .. code-block:: text

        p(x) = prod over pixels sum_k w_k prod_c [F((v_c + h - m_kc) / s_kc) - F((v_c - h - m_kc) / s_kc)]

    where v = 2 x - 1, h = 1/255, F is the logistic sigmoid, and the first and last levels extend to -inf and +inf. The
    mean of a channel depends on the values of earlier channels: m_kc = loc_kc + sum_{c' < c} coef_kcc' v_c'.
    Source: PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517, section 2.1 and 2.2).

    Values are intensities x in {0, 1/255, ..., 1}, event shape ``(C, H, W)``.

    Arguments:
        parameters: ``(..., K * per_component(C), H, W)``; see :meth:`per_component`.
        channels: C.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    @staticmethod
    def per_component(channels: int) -> int:
        """Parameters per mixture component and pixel: a weight, C means, C log-scales, C (C - 1) / 2 coefficients."""
        return 1 + 2 * channels + channels * (channels - 1) // 2

    def __init__(self, parameters: Tensor, channels: int, validate_args: bool | None = None):
        self.channels = channels
        sizes = [1, channels, channels, channels * (channels - 1) // 2]
        parts = parameters.unflatten(-3, (-1, sum(sizes))).split(sizes, -3)  # (..., K, size, H, W)
        self.logits = parts[0].squeeze(-3)
        self.loc = parts[1]
        self.log_scale = parts[2].clamp(min=LEAST_LOG_SCALE)
        self.coefficients = parts[3].tanh()
        shape = parameters.shape
        super().__init__(shape[:-3], torch.Size((channels, *shape[-2:])), validate_args=validate_args)

    @classmethod
    def single(cls, loc: Tensor, log_scale: Tensor) -> "DiscretizedLogisticMixture":
        """A single component with independent channels: means ``(..., C, H, W)`` and broadcastable log-scales."""
        channels = loc.shape[-3]
        zeros = torch.zeros_like(loc[..., :1, :, :])
        coefficients = zeros.expand(*zeros.shape[:-3], channels * (channels - 1) // 2, *zeros.shape[-2:])
        return cls(torch.cat([zeros, loc, log_scale.expand(loc.shape), coefficients], -3), channels)

    @property
    def support(self) -> constraints.Constraint:
        """Intensities."""
        return constraints.independent(constraints.unit_interval, 3)

    def expand(self, batch_shape, _instance=None) -> "DiscretizedLogisticMixture":
        """The same distribution for more images."""
        new = self._get_checked_instance(DiscretizedLogisticMixture, _instance)
        new.channels, batch_shape = self.channels, torch.Size(batch_shape)
        for name in ("logits", "loc", "log_scale", "coefficients"):
            value = getattr(self, name)
            setattr(new, name, value.expand(*batch_shape, *value.shape[len(self.batch_shape) :]))
        super(DiscretizedLogisticMixture, new).__init__(batch_shape, self.event_shape, validate_args=False)
        return new

    def _means(self, loc: Tensor, coefficients: Tensor, value_of: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Means of the channels ``(..., C, H, W)``, given the values, in [-1, 1], of earlier channels."""
        means: list[Tensor] = []
        values: list[Tensor] = []
        used = 0
        for channel in range(self.channels):
            mean = loc[..., channel, :, :]
            for earlier in values:
                mean = mean + coefficients[..., used, :, :] * earlier
                used += 1
            means.append(mean)
            values.append(value_of(channel, mean))
        return torch.stack(torch.broadcast_tensors(*means), -3)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p of images ``(..., C, H, W)``, ``(...)``."""
        if self._validate_args:
            self._validate_sample(value)
        v = (2 * value - 1)[..., None, :, :, :]
        centred = v - self._means(self.loc, self.coefficients, lambda channel, mean: v[..., channel, :, :])
        inverse_scale = (-self.log_scale).exp()
        half = 1 / (LEVELS - 1)
        upper, lower = inverse_scale * (centred + half), inverse_scale * (centred - half)
        # log of F(upper) - F(lower), which would cancel far from the component's mean
        width = 2 * half * inverse_scale
        inside = logsigmoid(upper) + logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        first, last = (value < half / 2)[..., None, :, :, :], (value > 1 - half / 2)[..., None, :, :, :]
        log_level = torch.where(first, logsigmoid(upper), torch.where(last, logsigmoid(-lower), inside))
        mixed = torch.logsumexp(log_level.sum(-3) + self.logits.log_softmax(-3), -3)  # (..., H, W)
        return mixed.sum((-2, -1))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Images sampled channel by channel and rounded to levels."""
        shape = self._extended_shape(torch.Size(sample_shape))
        component = torch.distributions.Categorical(logits=self.logits.movedim(-3, -1)).sample(torch.Size(sample_shape))
        chosen = component[..., None, None, :, :]  # (..., 1, 1, H, W): an index along K

        def pick(tensor: Tensor) -> Tensor:
            tensor = tensor.expand(*sample_shape, *tensor.shape)
            return tensor.gather(-4, chosen.expand(*shape[:-3], 1, tensor.shape[-3], *shape[-2:])).squeeze(-4)

        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(1e-5, 1 - 1e-5)
        noise = pick(self.log_scale).exp() * (uniform.log() - (-uniform).log1p())
        drawn: list[Tensor] = []

        def draw(channel: int, mean: Tensor) -> Tensor:
            drawn.append((mean + noise[..., channel, :, :]).clamp(-1, 1))
            return drawn[-1]

        self._means(pick(self.loc), pick(self.coefficients), draw)
        levels = ((torch.stack(drawn, -3) + 1) / 2 * (LEVELS - 1)).round()
        return levels / (LEVELS - 1)

    @property
    def mean(self) -> Tensor:
        """The weighted average of the components' means. It ignores clipping and is intended for figures."""
        means = self._means(self.loc, self.coefficients, lambda channel, mean: mean)
        mixed = (self.logits.softmax(-3)[..., None, :, :] * means).sum(-4)
        return ((mixed + 1) / 2).clamp(0, 1)
