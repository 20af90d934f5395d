"""Inspecting AIR's inferred scenes and counts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer.elbos.stopping_chain import StoppingChain, trace_path
from pplmodels.infer.looking import looking
from pplmodels.infer.traces import pair_traces, steps
from pplmodels.inspect.images import mean_of_x
from pplmodels.metrics.detection import object_boxes, shares_by_count
from pplmodels.sites import random_sites

CHANGES = 2**22  # values of objects on the canvas that are computed at once


@dataclass(frozen=True)
class InferredScenes:
    """One posterior sample for a batch of scenes.

    scenes, reconstruction: (B, C, H, W); z_pres: (B, T) of 0 and 1; z_where: (B, T, 3), (log s, x, y); boxes: (B, T, 4)
    of the drawn objects (:func:`drawn_boxes`); elbo: (B), log p(x, z) - log q(z | x) in nats.
    """

    scenes: Tensor
    reconstruction: Tensor
    z_pres: Tensor
    z_where: Tensor
    boxes: Tensor
    elbo: Tensor

    @classmethod
    def cat(cls, parts: Sequence["InferredScenes"]) -> "InferredScenes":
        """The scenes of several batches."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def part(self, indices: Tensor) -> "InferredScenes":
        """Some of the scenes."""
        return InferredScenes(*(getattr(self, field.name)[indices] for field in fields(self)))


@looking
def infer_scenes(model, guide, scenes: Tensor) -> InferredScenes:
    """Infer the objects of ``scenes (B, C, H, W)`` with one sample of the guide, and reconstruct the scenes."""
    guide_trace, model_trace = pair_traces(model, guide, scenes)
    latents = {name: site["value"] for name, site in random_sites(guide_trace)}
    return InferredScenes(
        scenes,
        mean_of_x(model_trace),
        torch.stack(steps(latents, "z_pres"), -1),
        torch.stack(steps(latents, "z_where"), -2),
        drawn_boxes(model, latents),
        _log_prob(model_trace) - _log_prob(guide_trace),
    )


def _log_prob(trace: Trace) -> Tensor:
    """The log-probability of each image, ``(B)``."""
    trace.compute_log_prob()
    sites = (site for _, site in random_sites(trace) if not site["infer"].get("is_auxiliary"))
    return reduce(torch.add, (site["log_prob"] for site in sites))


@looking
def drawn_boxes(model, latents: Mapping[str, Tensor]) -> Tensor:
    """The bounding boxes of what each step draws, present or not, ``(B, T, 4)`` in pixels.

    ``latents`` are a sample of the guide by site, and ``model`` has the method
    :meth:`pplmodels.AIR.scene_changes`. Boxes are those of :func:`pplmodels.metrics.object_boxes`: they are NaN for
    objects that are dark.
    """
    at_once = max(1, CHANGES // (model.num_steps * math.prod(model.canvas)))
    columns = (values.split(at_once) for values in latents.values())
    parts = (dict(zip(latents, rows, strict=True)) for rows in zip(*columns, strict=True))
    return torch.cat([object_boxes(model.scene_changes(part)) for part in parts])


@looking
def sample_scenes(model, n: int, count: int) -> Tensor:
    """``n`` scenes from the prior with ``count`` objects each, without pixel noise, ``(n, C, H, W)``.

    With the final prior over counts, almost all unconditional samples would be empty.
    """
    ones = next(model.parameters()).new_ones(n)
    z_pres = {f"z_pres_{t}": ones * (t <= count) for t in range(1, model.num_steps + 1)}
    conditioned = poutine.condition(model, data=z_pres)
    return mean_of_x(poutine.trace(conditioned).get_trace(n=n))


@looking
def count_posterior(guide, scenes: Tensor, num_samples: int = 1) -> Tensor:
    """q(n | x) for n = 0..T objects, ``(B, T + 1)``, averaged over ``num_samples`` paths of the guide.

    Each path gives the probabilities of all n (:class:`pplmodels.infer.elbos.stopping_chain.StoppingChain`), so a
    single path is already a good estimate. The argmax is the most probable count.
    """
    paths = (StoppingChain(trace_path(guide, scenes)).probs for _ in range(num_samples))
    return reduce(torch.add, paths).T / num_samples


def decided_counts(posterior: Tensor) -> Tensor:
    """The number of steps that continue with probability above 0.5, int64 ``(B)``, from q(n | x) ``(B, T + 1)``."""
    reached = posterior.flip(1).cumsum(1).flip(1)  # P(n >= t)
    go_on = reached[:, 1:] > 0.5 * reached[:, :-1]
    return go_on.long().cumprod(1).sum(1)


def count_objects(latents: Mapping[str, Tensor]) -> Tensor:
    """The number of objects in a sample of the latents, int64 ``(B)``."""
    return torch.stack(steps(latents, "z_pres")).sum(0).long()


def count_metrics(true: Tensor, inferred: Tensor, most_inferred: int) -> dict:
    """``count_accuracy`` of all scenes and, as ``count_accuracy/<n>``, of those with n objects, and ``confusion``.

    The latter has a row per true count and a column per inferred count, from 0.
    """
    shape = int(true.max()) + 1, most_inferred + 1
    confusion = torch.bincount(true * shape[1] + inferred, minlength=shape[0] * shape[1]).view(shape)
    return {**shares_by_count("count_accuracy", true == inferred, true), "confusion": confusion.tolist()}
