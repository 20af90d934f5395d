"""Masks for discrete sites that also mask the score function."""

from pyro.distributions import MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from torch import Tensor


class Masked(MaskedDistribution):
    """Like ``base_dist.mask(mask)``, but the score function is also masked.

    Pyro only masks the log-probability. The gradient is unbiased, because the score has zero mean, but each masked
    value adds variance: its score multiplies all downstream costs, which are thousands of nats for an image.

    Arguments:
        base_dist: a distribution without reparameterized samples.
        mask: bool, broadcastable to the batch shape. Where it is False, log-probability and gradient are 0.
    """

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The masked parts of the gradient estimator."""
        parts = super().score_parts(value)
        return parts._replace(score_function=scale_and_mask(parts.score_function, mask=self._mask))
