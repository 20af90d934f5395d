"""Distributions of a scene's presence variables: Bernoullis for which 0 is absorbing."""

import pyro.distributions as dist
import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from torch import Tensor

from pplmodels.nn.projected_clamp import projected_clamp

# Its sigmoid is exactly 0 in float32, and the log-probability of 0 is exactly 0.
IMPOSSIBLE_LOGIT = -200.0


def masked_bernoulli(logits: Tensor, present: Tensor) -> dist.Bernoulli:
    """Bernoulli(sigmoid(logits)) if the previous step found an object, and 0 with certainty after the stop.

    After the stop, the log-probability is 0, and ``logits`` get no gradient.
    """
    return dist.Bernoulli(logits=torch.where(present > 0, logits, IMPOSSIBLE_LOGIT))


def presence_prior_logits(log_k: Tensor, num_steps: int) -> Tensor:
    """Logits of rho_1..rho_T, (T): logit rho_t = log sum_{i=1..T-t+1} k^i, from p(n) proportional to k^n, n = 0..T."""
    powers = torch.arange(1, num_steps + 1, device=log_k.device) * log_k
    return torch.logcumsumexp(powers, 0).flip(0)


def clamp_logits(logits: Tensor, limit: Tensor) -> Tensor:
    """:func:`pplmodels.nn.projected_clamp` for logits with provenance (:mod:`pyro.ops.provenance`)."""
    return track_provenance(projected_clamp(detach_provenance(logits), limit), get_provenance(logits))
