"""Looking at what a trained pair believes: traces of the guide, replays of the model, as plain tensors."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions import Independent, TorchDistribution, TransformedDistribution
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer.codes import code_variances
from pplmodels.infer.parameters import module_owned_parameters
from pplmodels.infer.stops import Stops, trace_path
from pplmodels.nn.canvas import window_of


@dataclass(frozen=True)
class SceneView:
    """One posterior sample of a batch of scenes, as a person would look at it.

    scenes, reconstruction: (B, C, H, W); z_pres: (B, T) of 0 and 1; z_where: (B, T, 3), (log s, x, y).
    """

    scenes: Tensor
    reconstruction: Tensor
    z_pres: Tensor
    z_where: Tensor


@torch.no_grad()
def view_scenes(model, guide, scenes: Tensor) -> SceneView:
    """Infer the objects of ``scenes (B, C, H, W)`` with one sample of the guide, and let the model draw them."""
    with module_owned_parameters():
        guide_trace = poutine.trace(guide).get_trace(scenes)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(scenes)
    latents = {name: guide_trace.nodes[name]["value"] for name in guide_trace.stochastic_nodes}
    z_pres, z_where = steps(latents, "z_pres"), steps(latents, "z_where")
    return SceneView(scenes, model_trace.nodes["x"]["fn"].mean, torch.stack(z_pres, -1), torch.stack(z_where, -2))


@torch.no_grad()
def sample_scenes(model, n: int, count: int) -> Tensor:
    """``n`` scenes of ``count`` objects each from the prior, without pixel noise, ``(n, C, H, W)``.

    A trained prior over counts is strict: unconditioned, nearly all its scenes are empty.
    """
    z_pres = {f"z_pres_{t}": torch.full((n,), float(t <= count)) for t in range(1, model.num_steps + 1)}
    device = next(model.parameters()).device
    conditioned = poutine.condition(model, data={site: value.to(device) for site, value in z_pres.items()})
    with module_owned_parameters():
        trace = poutine.trace(conditioned).get_trace(n=n)
    return trace.nodes["x"]["fn"].mean


@torch.no_grad()
def count_posterior(guide, scenes: Tensor, num_samples: int = 1) -> Tensor:
    """q(n | x) for n = 0..T objects, ``(B, T + 1)``: its mean over ``num_samples`` paths of the guide's chain of stops.

    Each path gives all n with their probabilities (:class:`pplmodels.infer.stops.Stops`), so one is a good estimate
    already, and the argmax is the most probable count.
    """
    with module_owned_parameters():
        return sum(Stops(trace_path(guide, scenes)).probs for _ in range(num_samples)).T / num_samples


def decided_counts(posterior: Tensor) -> Tensor:
    """The steps taken when going on wherever that is likelier than not, int64 ``(B)``, from q(n | x) ``(B, T + 1)``."""
    reached = posterior.flip(1).cumsum(1).flip(1)  # P(n >= t)
    go_on = reached[:, 1:] > 0.5 * reached[:, :-1]
    return go_on.long().cumprod(1).sum(1)


@torch.no_grad()
def reconstruct(model, guide, x: Tensor) -> Tensor:
    """The centre of p(x | z) at one sample of the guide an image, ``(B, C, H, W)``."""
    with module_owned_parameters():
        guide_trace = poutine.trace(guide).get_trace(x)
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    return centre(trace.nodes["x"]["fn"])


@torch.no_grad()
def samples(model, n: int) -> Tensor:
    """``n`` draws of x from the model, noise of p(x | z) included."""
    with module_owned_parameters():
        return model(n=n)


@torch.no_grad()
def sample_images(model, n: int) -> Tensor:
    """The centre of p(x | z) at ``n`` codes from the prior, ``(n, C, H, W)``."""
    with module_owned_parameters():
        trace = poutine.trace(model).get_trace(n=n)
    return centre(trace.nodes["x"]["fn"])


@torch.no_grad()
def redraw(model, guide, x: Tensor, keep: Collection[str]) -> Tensor:
    """The centre of p(x | z) where only the sites in ``keep`` come from the guide, ``(B, C, H, W)``.

    The others are drawn from the model, given those that are kept: what of an image the kept ones hold.
    """
    with module_owned_parameters():
        values = poutine.trace(guide).get_trace(x).nodes
        kept = poutine.condition(model, data={site: values[site]["value"] for site in keep})
        trace = poutine.trace(kept).get_trace(n=len(x))
    return centre(trace.nodes["x"]["fn"])


@dataclass(frozen=True)
class Painting:
    """How DRAW paints a batch of images.

    canvases: ``(T + 1, B, C, H, W)``, what p(x | z) is centred at before the first step and after each. Where there is
    attention, reading and writing: ``(T, B, 3)``, centre (x, y) and side of the square that the window's filters
    divide, in pixels; else None.
    """

    canvases: Tensor
    reading: Tensor | None = None
    writing: Tensor | None = None


@torch.no_grad()
def watch(model, n: int) -> Painting:
    """``n`` images painted from the prior, step by step."""
    with module_owned_parameters():
        return _follow(model, None, poutine.trace(model).get_trace(n=n))


@torch.no_grad()
def watch_reconstruction(model, guide, x: Tensor) -> Painting:
    """The images ``x (B, C, H, W)`` painted again, step by step, from one sample of the guide an image."""
    with module_owned_parameters():
        return _follow(model, guide, poutine.trace(guide).get_trace(x))


def _follow(model, guide, trace: Trace) -> Painting:
    """The model's own steps at the codes of a trace."""
    state, canvas = model.start()
    codes = steps({name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}, "z")
    canvases, reading, writing = [canvas.expand(len(codes[0]), *canvas.shape)], [], []
    for z in codes:
        if guide is not None:
            reading.append(_square(guide.reader, state[0].expand(len(z), -1)))
        state, canvas = model.paint(z, state, canvas)
        writing.append(_square(model.writer, state[0]))
        canvases.append(canvas)
    centres = torch.stack([centre(model.p_x(canvas)) for canvas in canvases])
    return Painting(
        centres, *(torch.stack(where) if where and where[0] is not None else None for where in (reading, writing))
    )


def _square(part, h: Tensor) -> Tensor | None:
    """Centre and side ``(B, 3)`` of a reader's or a writer's window."""
    if (window := window_of(part, h)) is None:
        return None
    return torch.stack([window.x, window.y, window.stride * part.attention.size], -1)


@torch.no_grad()
def infer_codes(guide, x: Tensor, site: str = "codes") -> Tensor:
    """The guide's discrete codes of the images ``x (B, C, H, W)``, int64 ``(B, h, w)``."""
    with module_owned_parameters():
        return poutine.trace(guide).get_trace(x).nodes[site]["value"]


@torch.no_grad()
def interpolate(model, guide, first: Tensor, last: Tensor, steps: int, site: str = "z") -> Tensor:
    """What the model draws along straight lines between the codes of pairs of images, ``(B, steps, C, H, W)``."""
    with module_owned_parameters():
        ends = [poutine.trace(guide).get_trace(x).nodes[site]["value"] for x in (first, last)]
        weights = torch.linspace(0, 1, steps, device=first.device).view(-1, 1, *[1] * (ends[0].dim() - 1))
        codes = torch.lerp(*ends, weights).flatten(0, 1)
        trace = poutine.trace(poutine.condition(model, data={site: codes})).get_trace(n=len(codes))
    return centre(trace.nodes["x"]["fn"]).unflatten(0, (steps, len(first))).transpose(0, 1)


@torch.no_grad()
def manifold(model, guide, x: Tensor, side: int = 15, site: str = "z") -> tuple[Tensor, tuple[int, int]]:
    """What the model draws as its code moves over a plane, ``(side, side, C, H, W)``, and the plane's coordinates.

    They are the two (down, right) that tell the images ``x`` apart most, at evenly spaced quantiles of the codes of
    ``x`` from 2.5 % to 97.5 %; the others stay at their medians.
    """
    first, second = code_variances(guide, [x])[site].topk(2).indices.tolist()
    with module_owned_parameters():
        codes = poutine.trace(guide).get_trace(x).nodes[site]["value"]
        levels = torch.linspace(0.025, 0.975, side, dtype=codes.dtype, device=codes.device)
        plane = codes.median(0).values.repeat(side, side, 1)
        plane[..., first] = codes[:, first].quantile(levels)[:, None]
        plane[..., second] = codes[:, second].quantile(levels)
        trace = poutine.trace(poutine.condition(model, data={site: plane.flatten(0, 1)})).get_trace(n=side**2)
    return centre(trace.nodes["x"]["fn"]).unflatten(0, (side, side)), (first, second)


def centre(distribution: TorchDistribution) -> Tensor:
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


def count_objects(latents: Mapping[str, Tensor]) -> Tensor:
    """How many objects a sample of the latents has, int64 ``(B)``."""
    return torch.stack(steps(latents, "z_pres")).sum(0).long()


def steps(latents: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The values of the sites ``name_1``, ``name_2``, ... in the order of their numbers."""
    pattern = re.compile(rf"{re.escape(name)}_(\d+)$")
    numbered = [(int(match[1]), site) for site in latents if (match := pattern.match(site))]
    return [latents[site] for _, site in sorted(numbered)]


def count_metrics(true: Tensor, inferred: Tensor, most_inferred: int) -> dict:
    """``count_accuracy``, and ``confusion`` with a row a true count and a column an inferred count from 0."""
    shape = int(true.max()) + 1, most_inferred + 1
    confusion = torch.bincount(true * shape[1] + inferred, minlength=shape[0] * shape[1]).view(shape)
    return {"count_accuracy": float((true == inferred).double().mean()), "confusion": confusion.tolist()}
