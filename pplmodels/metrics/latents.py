"""Metrics of latent usage: active units, mutual information, aggregate posterior and codebook usage.

In distributed training, each rank passes its own batches, and results cover all ranks.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import reduce

import torch
from pyro import poutine
from pyro.distributions import TransformedDistribution
from torch import Tensor

from pplmodels import distributed
from pplmodels.infer.looking import looking
from pplmodels.sites import Site, random_sites

THRESHOLD = 0.01  # from Burda et al.


@looking
def posterior_mean_variances(guide, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Var_x E[z | x] of each dimension of each site of the guide, over the images of ``batches``.

    It is estimated by the covariance over images of two posterior samples per image, so posteriors need no analytic
    mean. Sites whose values are not one vector per image are omitted.
    """
    pairs = defaultdict(list)
    for x in batches:
        first, second = (_values(guide, x) for _ in range(2))
        for site, value in first.items():
            pairs[site].append(torch.stack([value, second[site]]).double())
    variances = {}
    for site, parts in pairs.items():
        if parts[0].dim() == 3:
            samples = distributed.all_gather(torch.cat(parts, 1).transpose(0, 1)).transpose(0, 1)
            first, second = samples - samples.mean(1, keepdim=True)
            variances[site] = (first * second).sum(0) / (len(first) - 1)
    return variances


def active_units(guide, batches: Iterable[Tensor]) -> dict[str, int]:
    """The number of active dimensions of each site: Var_x E[z | x] > 0.01 (Burda et al. 2016, appendix C)."""
    return {
        site: int((variance > THRESHOLD).sum()) for site, variance in posterior_mean_variances(guide, batches).items()
    }


@looking
def elbo_surgery(model, guide, x: Tensor, site: str = "z", chunk: int = 64) -> dict[str, float]:
    """Split the KL of a latent, in nats, into ``mutual_information`` I_q(x; z) and ``aggregate_kl`` KL(q(z) || p(z)).

    .. code-block:: text

        E_x KL(q(z | x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)),   q(z) = mean over the N images of q(z | x)

    (Hoffman & Johnson 2016, "ELBO surgery"), estimated from one sample per image of ``x (N, ...)``. q(z) includes the
    image itself, so the estimate of I is at most log N, and the aggregate KL is overestimated by the same amount.
    Returns an empty dict if the posterior is a flow, which would have to be inverted N^2 times.
    """
    posterior = _site(guide, x, site)
    prior = _site(poutine.condition(model, data={site: posterior["value"]}), x, site)
    z, q = posterior["value"], posterior["fn"]
    if isinstance(q, TransformedDistribution):
        return {}
    log_q_of = torch.cat([q.log_prob(part[:, None]) for part in z.split(chunk)])  # (N, N): latent i under posterior j
    log_q, log_aggregate = log_q_of.diagonal(), log_q_of.logsumexp(1) - math.log(len(z))
    log_p = prior["fn"].log_prob(z)
    return {
        "mutual_information": float((log_q - log_aggregate).mean()),
        "aggregate_kl": float((log_aggregate - log_p).mean()),
    }


@looking
def codebook_counts(guide, batches: Iterable[Tensor], codes: int, site: str = "codes") -> Tensor:
    """The counts of each of K discrete codes over all positions of all images, int64 ``(K)``."""
    counts = (_values(guide, x)[site].flatten().bincount(minlength=codes) for x in batches)
    return distributed.all_reduce(reduce(torch.add, counts))


def codebook_usage(counts: Tensor) -> dict[str, float]:
    """The fraction of codes in use and the perplexity (exp of the entropy) of the codes, from their counts ``(K)``."""
    shares = counts.double() / counts.sum()
    entropy = torch.special.entr(shares).sum()
    return {"code_usage": float((counts > 0).double().mean()), "code_perplexity": float(entropy.exp())}


def _values(guide, x: Tensor) -> dict[str, Tensor]:
    trace = poutine.trace(guide).get_trace(x)
    return {name: site["value"] for name, site in random_sites(trace) if not site["is_observed"]}


def _site(program, x: Tensor, name: str) -> Site:
    return dict(random_sites(poutine.trace(program).get_trace(x)))[name]
