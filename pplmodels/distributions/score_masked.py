"""Discrete sites that are not always there."""

from pyro.distributions import MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from torch import Tensor


class Masked(MaskedDistribution):
    """What ``base_dist.mask(mask)`` is, but where it is masked it has no score function either.

    Pyro masks the log-probability only. The mean gradient is right, as the score's mean is zero, but each masked value
    adds its score times all costs downstream of it: of a picture, thousands of nats.

    Arguments:
        base_dist: a distribution without reparameterised samples.
        mask: bool, to be broadcast to its batch shape; where it is False the site adds nothing, nor a gradient.
    """

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The ingredients of a gradient estimator, all masked."""
        parts = super().score_parts(value)
        return parts._replace(score_function=scale_and_mask(parts.score_function, mask=self._mask))
