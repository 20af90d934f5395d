"""Reconstructions, samples, and traversals of the latents of a pair, as images."""

from collections.abc import Collection

import torch
from pyro import poutine
from pyro.distributions import Independent, TransformedDistribution
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer.looking import looking
from pplmodels.infer.traces import pair_traces
from pplmodels.metrics.latents import posterior_mean_variances
from pplmodels.sites import random_sites


@looking
def reconstruct(model, guide, x: Tensor) -> Tensor:
    """The mean of p(x | z) at one sample of the guide per image, ``(B, C, H, W)``; see :func:`mean_image`."""
    _, trace = pair_traces(model, guide, x)
    return mean_of_x(trace)


@looking
def sample(model, n: int) -> Tensor:
    """``n`` samples of x from the model, including the noise of p(x | z)."""
    return model(n=n)


@looking
def sample_means(model, n: int) -> Tensor:
    """The mean of p(x | z) at ``n`` latents from the prior, ``(n, C, H, W)``."""
    return mean_of_x(poutine.trace(model).get_trace(n=n))


@looking
def resample(model, guide, x: Tensor, keep: Collection[str]) -> Tensor:
    """The mean of p(x | z) if only the sites in ``keep`` are from the guide, ``(B, C, H, W)``.

    The other sites are sampled from the model given these. This shows which information is in the kept sites.
    """
    values = poutine.trace(guide).get_trace(x).nodes
    kept = poutine.condition(model, data={site: values[site]["value"] for site in keep})
    return mean_of_x(poutine.trace(kept).get_trace(n=len(x)))


@looking
def infer_codes(guide, x: Tensor, site: str = "codes") -> Tensor:
    """The guide's discrete codes of the images ``x (B, C, H, W)``, int64 ``(B, h, w)``."""
    return poutine.trace(guide).get_trace(x).nodes[site]["value"]


@looking
def interpolate(model, guide, first: Tensor, last: Tensor, steps: int, site: str = "z") -> Tensor:
    """Images along straight lines between the latents of pairs of images, ``(B, steps, C, H, W)``."""
    start, end = (poutine.trace(guide).get_trace(x).nodes[site]["value"] for x in (first, last))
    weights = torch.linspace(0, 1, steps, dtype=start.dtype, device=first.device)
    weights = weights.view(-1, 1, *[1] * (start.dim() - 1))
    drawn = _drawn(model, site, torch.lerp(start, end, weights).flatten(0, 1))
    return drawn.unflatten(0, (steps, len(first))).transpose(0, 1)


@looking
def manifold(model, guide, x: Tensor, side: int = 15, site: str = "z") -> tuple[Tensor, tuple[int, int]]:
    """Images over a plane of latents, ``(side, side, C, H, W)``, and the indices of the plane's dimensions.

    These are the two dimensions (down, right) that vary most between the images ``x``, at evenly spaced quantiles of
    the latents of ``x`` from 2.5 % to 97.5 %. The other dimensions are at their medians.
    """
    first, second = posterior_mean_variances(guide, [x])[site].topk(2).indices.tolist()
    codes = poutine.trace(guide).get_trace(x).nodes[site]["value"]
    levels = torch.linspace(0.025, 0.975, side, dtype=codes.dtype, device=codes.device)
    plane = codes.median(0).values.repeat(side, side, 1)
    plane[..., first] = codes[:, first].quantile(levels)[:, None]
    plane[..., second] = codes[:, second].quantile(levels)
    return _drawn(model, site, plane.flatten(0, 1)).unflatten(0, (side, side)), (first, second)


@looking
def traverse(model, guide, x: Tensor, site: str = "z", units: int = 6, steps: int = 9) -> tuple[Tensor, list[int]]:
    """Images for a traversal of single dimensions of the first image's latent, ``(units, steps, C, H, W)``.

    The dimensions, whose indices are also returned, are those that vary most between the images ``x (B, C, H, W)``, in
    descending order. Each takes evenly spaced quantiles of the latents of ``x`` from 2.5 % to 97.5 %.
    """
    variances = posterior_mean_variances(guide, [x])[site]
    moving = variances.topk(min(units, len(variances))).indices
    codes = poutine.trace(guide).get_trace(x).nodes[site]["value"]
    levels = torch.linspace(0.025, 0.975, steps, dtype=codes.dtype, device=codes.device)
    moved = codes[0].repeat(len(moving), steps, 1)
    for row, unit in zip(moved, moving, strict=True):
        row[:, unit] = codes[:, unit].quantile(levels)
    return _drawn(model, site, moved.flatten(0, 1)).unflatten(0, moved.shape[:2]), moving.tolist()


@looking
def prior_and_aggregate_posterior(
    model, guide, x: Tensor, site: str = "z"
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Samples of the prior and posterior samples of the images ``x``: points ``(B, 2)`` of each.

    The two dimensions, whose indices are also returned, are those that vary most between the images. A learned prior
    (VLAE's flow) should match the cloud of the posterior samples, the aggregate posterior. Otherwise its samples do not
    decode to plausible images.
    """
    first, second = posterior_mean_variances(guide, [x])[site].topk(2).indices.tolist()
    samples = {
        "p(z)": poutine.trace(model).get_trace(n=len(x)).nodes[site]["value"],
        "q(z | x) of images": poutine.trace(guide).get_trace(x).nodes[site]["value"],
    }
    return {name: codes[:, [first, second]] for name, codes in samples.items()}, (first, second)


def _drawn(model, site: str, codes: Tensor) -> Tensor:
    """The mean of p(x | z) at ``codes (N, ...)`` of one site, ``(N, C, H, W)``."""
    return mean_of_x(poutine.trace(poutine.condition(model, data={site: codes})).get_trace(n=len(codes)))


def mean_of_x(trace: Trace) -> Tensor:
    """The :func:`mean_image` of p(x | z) in a trace of a model."""
    return mean_image(dict(random_sites(trace))["x"]["fn"])


def mean_image(distribution: torch.distributions.Distribution) -> Tensor:
    """The image to show for p(x | z): its mean or, for a transformed distribution, the transformed mean of its base."""
    base = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, TransformedDistribution):
        return distribution.mean
    value = base.base_dist.mean
    for transform in base.transforms:
        value = transform(value)
    return value
