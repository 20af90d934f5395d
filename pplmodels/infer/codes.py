"""How much of its codes a pair uses: active units, mutual information, the aggregate posterior."""

import math
from collections.abc import Iterable

import torch
from pyro import poutine
from torch import Tensor

from pplmodels.infer.parameters import module_owned_parameters

THRESHOLD = 0.01  # of Burda et al.


@torch.no_grad()
def active_units(guide, batches: Iterable[Tensor], site: str = "z") -> int:
    """How many coordinates of a code know of the image: Var_x E[z | x] > 0.01 (Burda et al. 2016, appendix C).

    The variance is the covariance over images of two samples of each image's posterior: no mean of one is needed.
    """
    with module_owned_parameters():
        samples = [[_site(guide, x, site)["value"] for _ in range(2)] for x in batches]
    first, second = (torch.cat(part).flatten(1).double() for part in zip(*samples, strict=True))
    covariance = ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / (len(first) - 1)
    return int((covariance > THRESHOLD).sum())


@torch.no_grad()
def information(model, guide, x: Tensor, site: str = "z", chunk: int = 64) -> dict[str, float]:
    """Where the KL of a code goes, in nats: ``mutual_information`` I_q(x; z) and ``aggregate_kl`` KL(q(z) || p(z)).

    .. code-block:: text

        E_x KL(q(z | x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)),   q(z) = mean over the N images of q(z | x)

    (Hoffman & Johnson 2016, "ELBO surgery"), by one sample an image of ``x (N, ...)``. q(z) contains the image
    itself, so the estimate of I is at most log N.
    """
    with module_owned_parameters():
        posterior = _site(guide, x, site)
        prior = _site(poutine.condition(model, data={site: posterior["value"]}), x, site)
    z, q = posterior["value"], posterior["fn"]
    log_q_of = torch.cat([q.log_prob(part[:, None]) for part in z.split(chunk)])  # (N, N): of image i's code under j
    log_q, log_aggregate = log_q_of.diagonal(), log_q_of.logsumexp(1) - math.log(len(z))
    log_p = prior["fn"].log_prob(z)
    return {
        "mutual_information": float((log_q - log_aggregate).mean()),
        "aggregate_kl": float((log_aggregate - log_p).mean()),
    }


def _site(program, x: Tensor, site: str) -> dict:
    return poutine.trace(program).get_trace(x).nodes[site]
