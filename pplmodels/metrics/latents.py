"""How much of its codes a pair uses: active units, mutual information, the aggregate posterior.

Of several ranks each brings batches of its own; the results are of all of them.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from pyro import poutine
from pyro.distributions import TransformedDistribution
from torch import Tensor

from pplmodels import distributed
from pplmodels.infer.looking import looking
from pplmodels.infer.traces import random_sites

THRESHOLD = 0.01  # of Burda et al.


@looking
def posterior_mean_variances(guide, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Var_x E[z | x] of each coordinate of each of the guide's sites, over the images of ``batches``.

    The covariance over images of two samples of each image's posterior: no posterior has to tell its mean. Sites whose
    values are not a vector an image are left out.
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
    """How many coordinates of each site know of the image: Var_x E[z | x] > 0.01 (Burda et al. 2016, appendix C)."""
    return {
        site: int((variance > THRESHOLD).sum()) for site, variance in posterior_mean_variances(guide, batches).items()
    }


@looking
def elbo_surgery(model, guide, x: Tensor, site: str = "z", chunk: int = 64) -> dict[str, float]:
    """Where the KL of a code goes, in nats: ``mutual_information`` I_q(x; z) and ``aggregate_kl`` KL(q(z) || p(z)).

    .. code-block:: text

        E_x KL(q(z | x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)),   q(z) = mean over the N images of q(z | x)

    (Hoffman & Johnson 2016, "ELBO surgery"), by one sample an image of ``x (N, ...)``. q(z) contains the image
    itself, so the estimate of I is at most log N, and that of the aggregate's KL too large by what is missing.
    Nothing is estimated where the posterior is a flow, which would have to be inverted N^2 times.
    """
    posterior = _site(guide, x, site)
    prior = _site(poutine.condition(model, data={site: posterior["value"]}), x, site)
    z, q = posterior["value"], posterior["fn"]
    if isinstance(q, TransformedDistribution):
        return {}
    log_q_of = torch.cat([q.log_prob(part[:, None]) for part in z.split(chunk)])  # (N, N): of image i's code under j
    log_q, log_aggregate = log_q_of.diagonal(), log_q_of.logsumexp(1) - math.log(len(z))
    log_p = prior["fn"].log_prob(z)
    return {
        "mutual_information": float((log_q - log_aggregate).mean()),
        "aggregate_kl": float((log_aggregate - log_p).mean()),
    }


@looking
def codebook_counts(guide, batches: Iterable[Tensor], codes: int, site: str = "codes") -> Tensor:
    """How often each of K discrete codes is inferred in all positions of all images, int64 ``(K)``."""
    return distributed.all_reduce(sum(_values(guide, x)[site].flatten().bincount(minlength=codes) for x in batches))


def codebook_usage(counts: Tensor) -> dict[str, float]:
    """Of counts of codes ``(K)``: the share that is used, and e to the entropy, as how many codes they serve."""
    shares = counts.double() / counts.sum()
    entropy = torch.special.entr(shares).sum()
    return {"code_usage": float((counts > 0).double().mean()), "code_perplexity": float(entropy.exp())}


def _values(guide, x: Tensor) -> dict[str, Tensor]:
    trace = poutine.trace(guide).get_trace(x)
    return {name: site["value"] for name, site in random_sites(trace) if not site["is_observed"]}


def _site(program, x: Tensor, site: str) -> dict:
    return poutine.trace(program).get_trace(x).nodes[site]
