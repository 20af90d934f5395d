"""Images of what a pair believes: reconstructions, samples, ways through its codes."""

from collections.abc import Collection

import torch
from pyro import poutine
from pyro.distributions import Independent, TorchDistribution, TransformedDistribution
from torch import Tensor

from pplmodels.infer.looking import looking
from pplmodels.infer.traces import pair_traces
from pplmodels.metrics.latents import posterior_mean_variances


@looking
def reconstruct(model, guide, x: Tensor) -> Tensor:
    """The centre of p(x | z) at one sample of the guide an image, ``(B, C, H, W)``."""
    _, trace = pair_traces(model, guide, x)
    return mean_image(trace.nodes["x"]["fn"])


@looking
def sample(model, n: int) -> Tensor:
    """``n`` draws of x from the model, noise of p(x | z) included."""
    return model(n=n)


@looking
def sample_means(model, n: int) -> Tensor:
    """The centre of p(x | z) at ``n`` codes from the prior, ``(n, C, H, W)``."""
    trace = poutine.trace(model).get_trace(n=n)
    return mean_image(trace.nodes["x"]["fn"])


@looking
def resample(model, guide, x: Tensor, keep: Collection[str]) -> Tensor:
    """The centre of p(x | z) where only the sites in ``keep`` come from the guide, ``(B, C, H, W)``.

    The others are drawn from the model, given those that are kept: what of an image the kept ones hold.
    """
    values = poutine.trace(guide).get_trace(x).nodes
    kept = poutine.condition(model, data={site: values[site]["value"] for site in keep})
    trace = poutine.trace(kept).get_trace(n=len(x))
    return mean_image(trace.nodes["x"]["fn"])


@looking
def infer_codes(guide, x: Tensor, site: str = "codes") -> Tensor:
    """The guide's discrete codes of the images ``x (B, C, H, W)``, int64 ``(B, h, w)``."""
    return poutine.trace(guide).get_trace(x).nodes[site]["value"]


@looking
def interpolate(model, guide, first: Tensor, last: Tensor, steps: int, site: str = "z") -> Tensor:
    """What the model draws along straight lines between the codes of pairs of images, ``(B, steps, C, H, W)``."""
    ends = [poutine.trace(guide).get_trace(x).nodes[site]["value"] for x in (first, last)]
    weights = torch.linspace(0, 1, steps, dtype=ends[0].dtype, device=first.device)
    weights = weights.view(-1, 1, *[1] * (ends[0].dim() - 1))
    drawn = _drawn(model, site, torch.lerp(*ends, weights).flatten(0, 1))
    return drawn.unflatten(0, (steps, len(first))).transpose(0, 1)


@looking
def manifold(model, guide, x: Tensor, side: int = 15, site: str = "z") -> tuple[Tensor, tuple[int, int]]:
    """What the model draws as its code moves over a plane, ``(side, side, C, H, W)``, and the plane's coordinates.

    They are the two (down, right) that tell the images ``x`` apart most, at evenly spaced quantiles of the codes of
    ``x`` from 2.5 % to 97.5 %; the others stay at their medians.
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
    """What the model draws as one coordinate of the first image's code moves, ``(units, steps, C, H, W)``.

    The coordinates, whose numbers are returned too, are those that tell the images ``x (B, C, H, W)`` apart most, the
    most telling first; each moves through evenly spaced quantiles of the codes of ``x`` from 2.5 % to 97.5 %.
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
def code_clouds(model, guide, x: Tensor, site: str = "z") -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Where the prior puts codes, and where the guide puts those of the images ``x``: points ``(B, 2)`` of each.

    Their two coordinates, whose numbers are returned too, are those that tell the images apart most. A prior that is
    learned (VLAE's flow) comes to lie on the guide's cloud, the aggregate posterior; where it does not, samples of the
    prior are no codes of images.
    """
    first, second = posterior_mean_variances(guide, [x])[site].topk(2).indices.tolist()
    clouds = {
        "p(z)": poutine.trace(model).get_trace(n=len(x)).nodes[site]["value"],
        "q(z | x) of images": poutine.trace(guide).get_trace(x).nodes[site]["value"],
    }
    return {name: codes[:, [first, second]] for name, codes in clouds.items()}, (first, second)


def _drawn(model, site: str, codes: Tensor) -> Tensor:
    """The centre of p(x | z) at ``codes (N, ...)`` of one site, ``(N, C, H, W)``."""
    trace = poutine.trace(poutine.condition(model, data={site: codes})).get_trace(n=len(codes))
    return mean_image(trace.nodes["x"]["fn"])


def mean_image(distribution: TorchDistribution) -> Tensor:
    """What to show of p(x | z): its mean, or where the transforms of a transformed distribution take its base's."""
    base = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, TransformedDistribution):
        return distribution.mean
    value = base.base_dist.mean
    for transform in base.transforms:
        value = transform(value)
    return value
