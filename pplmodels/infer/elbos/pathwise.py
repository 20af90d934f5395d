"""Pathwise gradients of importance-weighted bounds without the score function of reparameterized sites.

STL: Roeder et al. 2017, arXiv 1703.09194. DReG: Tucker et al. 2019, arXiv 1810.04152. GDReG: Bauer & Mnih 2021, arXiv
2101.11046.
"""

import torch
from pyro.distributions import (
    Cauchy,
    ExpandedDistribution,
    Independent,
    Laplace,
    MaskedDistribution,
    MultivariateNormal,
    Normal,
)
from torch import Tensor

from pplmodels.infer.elbos.autograd import Gradients, partials
from pplmodels.infer.elbos.particles import Cut, Particles, Weights
from pplmodels.sites import Site

LOC_SCALE = (Normal, Laplace, Cauchy)


def pathwise_surrogate(
    run: Particles, weights: Weights, cut: Cut, number: int, shrink: float, generalised: bool
) -> Tensor:
    """A scalar with the doubly reparameterized gradient of the sum of the bounds.

    With normalized weights v, exponents b of the sites of the guide (1 without scales and masks) and the total
    derivative D of the log weight along the path of the samples, which are functions of noise and parameters,

    .. code-block:: text

        sum_k v_k d log p(x, z_k)                                    parameters of the model, z_k fixed
        sum_k (v_k - b shrink (v_k - v_k^2)) D_k d z_k               parameters of the guide

    where a site's ``d z_k`` only counts parameters of its own distribution. This follows from the identity E[g d log q]
    = E[D g d z] for the score of each site. With ``shrink = 0`` the score is dropped instead (STL). Delta sites are
    functions of other sites and keep their gradients.

    If ``generalised``, the scores of the model's latents are also reparameterized (GDReG): ``v_k d log p(z_k)`` becomes

    .. code-block:: text

        b (v_k d/dz log q(z_k) / p(z_k) + shrink (v_k - v_k^2) d/dz log w_k) d T(noise)

    where T is the reparameterized sample of p with the noise that gives z_k, and q and p are the unscaled densities.

    Arguments:
        run: the particles, whose samples are cut by ``cut``.
        weights: the normalized weights.
        number: K.
        shrink: 1 - alpha for DReG, 0 for STL.
        generalised: whether to apply GDReG.
    """
    share = run.scale * weights.normalised
    latents = {name: run.guide[name] for name in run.latents}
    q = sum((run.term(site) for site in latents.values()), torch.zeros_like(run.log_q))
    p = torch.zeros_like(run.log_p)
    if generalised:
        p = sum((run.term(run.model[name]) for name in latents if name in run.model), p)
    gradients, leaves = Gradients(), {name: cut.leaves[name] for name in latents}
    explicit = (share * (run.log_p - p - (run.log_q - q))).sum() + run.outside / number
    direct = dict(zip(leaves, gradients.add(explicit, leaves.values()), strict=True))
    for sign, term in ((1, p), (-1, q)):
        for name, gradient in partials((share * term).sum(), leaves).items():
            direct[name] = direct[name] + sign * gradient
    surrogate = gradients.scalar(explicit)
    if generalised:
        densities = sum((_density(run, site, leaves[name]) for name, site in latents.items()), torch.zeros_like(q))
        scores = partials((share * densities).sum(), leaves)
        for name in latents:
            if name in run.model:
                less = shrink * run.spread(1 - weights.normalised, latents[name])
                surrogate = surrogate + _prior(run, run.model[name], share, scores[name], less * direct[name])
    total = dict(direct)
    for name, site in reversed(latents.items()):
        sample = cut.sampled[name]
        if sample.requires_grad:
            for earlier, gradient in _through(sample, total[name], leaves).items():
                total[earlier] = total[earlier] + gradient
            less = shrink * run.spread(1 - weights.normalised, site) * _exponent(run, site)
            surrogate = surrogate + (sample * (total[name] * (1 - less)).detach()).sum()
    return surrogate


def _through(sample: Tensor, gradient: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of earlier choices through a sample with this gradient."""
    return partials((sample * gradient.detach()).sum(), leaves)


def _prior(run: Particles, site: Site, share: Tensor, score: Tensor, rest: Tensor) -> Tensor:
    """The term of GDReG for one of the model's latents."""
    value = site["value"].detach()
    moved = reparameterised(site["fn"], value, site["name"])
    if not moved.requires_grad:
        return share.new_zeros(())
    own = value.clone().requires_grad_()
    (slope,) = torch.autograd.grad((share * _density(run, site, own)).sum(), own, retain_graph=True)
    return (moved * (_exponent(run, site) * (score - slope + rest)).detach()).sum()


def _density(run: Particles, site: Site, value: Tensor) -> Tensor:
    """The log density of a site without scales and masks, ``(C, M)``."""
    return run.per_image(_unmasked(site["fn"]).log_prob(value))


def _unmasked(function):
    """A distribution without the masks of its parts."""
    if isinstance(function, MaskedDistribution):
        return _unmasked(function.base_dist)
    if isinstance(function, Independent):
        return Independent(_unmasked(function.base_dist), function.reinterpreted_batch_ndims)
    return function


def _exponent(run: Particles, site: Site) -> Tensor | float:
    """The exponent of a site's density in the weight, broadcastable to its values: its relative scale, 0 if masked."""
    exponent = _of_events(run.relative_scale(site), site["fn"].event_dim)
    if site["mask"] is not None:
        exponent = exponent * _of_events(site["mask"], site["fn"].event_dim)
    function = site["fn"]
    while isinstance(function, Independent | MaskedDistribution):
        if isinstance(function, MaskedDistribution):
            exponent = exponent * _of_events(function._mask, function.event_dim)
        function = function.base_dist
    return exponent


def _of_events(value: Tensor | float, event_dim: int) -> Tensor | float:
    """A value of batch shape, with event dimensions of size 1."""
    return value.reshape([*value.shape, *[1] * event_dim]) if isinstance(value, Tensor) else value


def reparameterised(function, value: Tensor, name: str) -> Tensor:
    """A sample equal to ``value``, as a function of a distribution's parameters with fixed noise.

    Raises ValueError for distributions with parameters to learn whose noise cannot be computed from a sample.
    """
    if isinstance(function, Independent | MaskedDistribution | ExpandedDistribution):
        return reparameterised(function.base_dist, value, name)
    if isinstance(function, torch.distributions.TransformedDistribution):
        with torch.no_grad():
            for transform in reversed(function.transforms):
                value = transform.inv(value)
        # a new tensor, because transforms return the sample they have cached for a tensor that they know
        value = reparameterised(function.base_dist, value.detach(), name).clone()
        for transform in function.transforms:
            value = transform(value)
        return value
    if not any(isinstance(part, Tensor) and part.requires_grad for part in vars(function).values()):
        return value
    if isinstance(function, LOC_SCALE):
        return function.loc + function.scale * ((value - function.loc) / function.scale).detach()
    if isinstance(function, MultivariateNormal):
        scale = function.scale_tril
        noise = torch.linalg.solve_triangular(scale, (value - function.loc).unsqueeze(-1), upper=False).detach()
        return function.loc + (scale @ noise).squeeze(-1)
    raise ValueError(
        f'gradient="gdreg" needs the noise of a sample of {name} of the model, which is only known for locations and '
        f'scales, not for {type(function).__name__}: use gradient="dreg"'
    )
