"""Inspecting AIR's inferred scenes and counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from pyro import poutine
from torch import Tensor

from pplmodels.infer.elbos.stopping_chain import StoppingChain, trace_path
from pplmodels.infer.looking import looking
from pplmodels.infer.traces import pair_traces, steps
from pplmodels.inspect.images import mean_of_x
from pplmodels.sites import random_sites


@dataclass(frozen=True)
class InferredScenes:
    """One posterior sample for a batch of scenes.

    scenes, reconstruction: (B, C, H, W); z_pres: (B, T) of 0 and 1; z_where: (B, T, 3), (log s, x, y).
    """

    scenes: Tensor
    reconstruction: Tensor
    z_pres: Tensor
    z_where: Tensor


@looking
def infer_scenes(model, guide, scenes: Tensor) -> InferredScenes:
    """Infer the objects of ``scenes (B, C, H, W)`` with one sample of the guide, and reconstruct the scenes."""
    guide_trace, model_trace = pair_traces(model, guide, scenes)
    latents = {name: site["value"] for name, site in random_sites(guide_trace)}
    z_pres, z_where = steps(latents, "z_pres"), steps(latents, "z_where")
    return InferredScenes(scenes, mean_of_x(model_trace), torch.stack(z_pres, -1), torch.stack(z_where, -2))


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
    """``count_accuracy``, and ``confusion`` with a row per true count and a column per inferred count, from 0."""
    shape = int(true.max()) + 1, most_inferred + 1
    confusion = torch.bincount(true * shape[1] + inferred, minlength=shape[0] * shape[1]).view(shape)
    return {"count_accuracy": float((true == inferred).double().mean()), "confusion": confusion.tolist()}
