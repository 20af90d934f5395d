"""Inspecting AIR3D: inferred solids, search without a guide, and accuracy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import pyro
import torch
from pyro import poutine
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pplmodels.data.tabletop import TabletopScenes
from pplmodels.defaults import default_device
from pplmodels.distributions.wrapped_normal import wrapped
from pplmodels.infer.elbos.stopping_chain import StoppingChain, trace_path
from pplmodels.infer.handlers import ModeMessenger
from pplmodels.infer.looking import looking, unchanged
from pplmodels.infer.traces import steps as steps_of
from pplmodels.inspect.air import count_objects
from pplmodels.metrics.bounds import log_probs
from pplmodels.nn.renderer import KINDS, PERIODS
from pplmodels.sites import random_sites


@dataclass(frozen=True)
class Solids:
    """The solids of a batch of scenes. Of the T entries per scene, the first ``count`` are valid.

    ``count (B)``; ``kind (B, T)`` are indices into :data:`pplmodels.nn.renderer.KINDS`; ``place (B, T, 2)`` in halves
    of the table's side; ``yaw (B, T)`` in radians.
    """

    count: Tensor
    kind: Tensor
    place: Tensor
    yaw: Tensor

    @property
    def present(self) -> Tensor:
        """Which entries are valid, ``(B, T)`` of 0.0 and 1.0."""
        return (torch.arange(self.kind.shape[1], device=self.kind.device) < self.count[:, None]).to(self.place.dtype)


def true_solids(tables: TabletopScenes) -> Solids:
    """The true solids of a dataset's scenes, in torch's default dtype."""
    dtype = torch.get_default_dtype()
    return Solids(tables.counts, tables.kind, tables.place.to(dtype), tables.yaw.to(dtype))


@looking
def find_solids(guide, x: Tensor) -> Solids:
    """The most probable solids of images ``x (B, 3, H, W)`` under the guide: each site at its mode, step by step."""
    with ModeMessenger():
        path = trace_path(guide, x)
    values = {name: site["value"] for name, site in random_sites(path)}
    return replace(sampled_solids(values), count=StoppingChain(path).probs.argmax(0))


def sampled_solids(latents: Mapping[str, Tensor]) -> Solids:
    """The solids of a sample of the guide, from its values by site."""
    kind, yaw = (torch.stack(steps_of(latents, name), -1) for name in ("z_kind", "z_yaw"))
    return Solids(count_objects(latents), kind, torch.stack(steps_of(latents, "z_place"), -2), yaw)


@torch.no_grad()
def sample_yaws(model, guide, x: Tensor, num_samples: int = 500) -> Tensor:
    """Samples from q(z_yaw_1 | x), ``(B, num_samples)`` in radians."""
    _, _, latents = log_probs(model, guide, x, num_samples)
    return latents["z_yaw_1"].expand(num_samples, len(x)).T


@looking
def render_solids(model, solids: Solids, renderer=None) -> Tensor:
    """Images of solids, ``(B, 3, H, W)``, by the model's renderer or another one (e.g. with another camera)."""
    renderer = renderer or model.renderer
    return renderer(solids.present, solids.kind, solids.place, solids.yaw)


def log_joint(model, x: Tensor, solids: Solids) -> Tensor:
    """log p(x, z) of images ``x (B, 3, H, W)`` and solids, ``(B)`` in nats."""
    number = range(1, model.num_steps + 1)
    columns = {"z_pres": solids.present, "z_kind": solids.kind, "z_place": solids.place, "z_yaw": solids.yaw}
    values = {f"{name}_{t}": value[:, t - 1] for name, value in columns.items() for t in number}
    with unchanged(model):
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x)
        trace.compute_log_prob()
        return reduce(torch.add, (site["log_prob"] for _, site in random_sites(trace)))


def refine_solids(model, x: Tensor, solids: Solids, steps: int = 20, lr: float = 0.005) -> tuple[Solids, Tensor]:
    """Optimize places and yaws for log p(x, z); returns the solids and its value ``(B)``. Counts and kinds are fixed.

    Uses Adam with a cosine schedule. The learning rate of places is ``lr`` in halves of the table's side, and that of
    yaws is three times ``lr`` in radians.
    """
    place, yaw = (value.detach().clone().requires_grad_() for value in (solids.place, solids.yaw))
    moving = replace(solids, place=place, yaw=yaw)
    optim = torch.optim.Adam([{"params": [place], "lr": lr}, {"params": [yaw], "lr": 3 * lr}])
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    with default_device(x.device), pyro.validation_enabled(False):  # yaws may leave the circle between steps
        for _ in range(steps):
            place.grad, yaw.grad = torch.autograd.grad(-log_joint(model, x, moving).sum(), [place, yaw])
            optim.step()
            rate.step()
        refined = replace(solids, place=place.detach(), yaw=wrapped(yaw.detach()))
        return refined, log_joint(model, x, refined).detach()


def search_solids(model, x: Tensor, starts: int, steps: int, lr: float = 0.03) -> Solids:
    """Inference without a guide: the best of ``starts`` refinements of each image from random starts.

    Counts are uniform over 0..T, or 1 if T is 1; kinds and yaws are uniform; places are sampled from the prior.
    """
    number, most, device = len(x) * starts, model.num_steps, x.device
    fewest = 1 if most == 1 else 0
    count = torch.randint(fewest, most + 1, (number,), device=device)
    kind = torch.randint(len(KINDS), (number, most), device=device)
    place = model.place_scale * torch.randn(number, most, 2, device=device)
    yaw = (2 * torch.rand(number, most, device=device) - 1) * math.pi
    tried, value = refine_solids(model, x.repeat_interleave(starts, 0), Solids(count, kind, place, yaw), steps, lr)
    best = value.view(-1, starts).argmax(1) + torch.arange(0, number, starts, device=device)
    return Solids(*(getattr(tried, field.name)[best] for field in fields(tried)))


def yaw_errors(found: Tensor, true: Tensor, kind: Tensor) -> Tensor:
    """The difference of two yaws in radians, up to the symmetry of the ``kind``; all ``(...)``, NaN for spheres.

    >>> quarter = torch.tensor([math.pi / 2 + 0.1])
    >>> [round(float(yaw_errors(quarter, torch.zeros(1), torch.tensor([kind]))), 2) for kind in (1, 2)]
    [0.1, 1.67]
    """
    period = torch.tensor(PERIODS, device=found.device, dtype=found.dtype)[kind]
    times = 2 * math.pi / period  # scale a period to the full circle, wrap, and scale back
    return (wrapped((found - true) * times) / times).abs()


def solid_metrics(true: Solids, found: Solids) -> dict:
    """Accuracy of inferred solids.

    ``count_accuracy_argmax`` is computed from counts. For the other metrics, the solids of a scene are matched (as many
    as the smaller count) such that the sum of distances is minimal:

    - ``kind_recall``: the fraction of all true solids that are matched with a solid of their kind. A solid that was
      missed counts as wrong.
    - ``kind_accuracy``: the fraction of the matched solids that have the right kind.
    - ``kind_confusion`` of the matched solids, with a row per true kind.
    - ``place_error_percent``: the median distance of matched solids in percent of the table's side.
    - ``yaw_error_degrees``: the median error, up to the kind's symmetry, of the rotations of all matched solids whose
      kind is right and not a sphere, and ``yaw_error_degrees/<kind>``, that of one kind.
    - ``place_error_percent_p90``, ``yaw_error_degrees_p90``: 90th percentiles instead of medians.

    Metrics without data are omitted.
    """
    true, found = (_on_cpu(solids) for solids in (true, found))
    metrics: dict[str, Any] = {"count_accuracy_argmax": float((true.count == found.count).double().mean())}
    pairs = [
        (scene, row, column)
        for scene, distance in enumerate(torch.cdist(true.place, found.place))
        for row, column in zip(
            *linear_sum_assignment(distance[: true.count[scene], : found.count[scene]].numpy()), strict=True
        )
    ]
    scenes, rows, columns = torch.tensor(pairs, dtype=torch.int64, device="cpu").view(-1, 3).T
    kind, kind_found = true.kind[scenes, rows], found.kind[scenes, columns]
    if true.count.any():
        metrics["kind_recall"] = float((kind == kind_found).sum() / true.count.sum())
    if not pairs:
        return metrics
    number = len(KINDS)
    metrics["kind_accuracy"] = float((kind == kind_found).double().mean())
    confusion = torch.bincount(kind * number + kind_found, minlength=number**2).view(number, number)
    metrics["kind_confusion"] = confusion.tolist()
    off = (true.place[scenes, rows] - found.place[scenes, columns]).norm(dim=-1)
    metrics |= _spread("place_error_percent", off / 2 * 100)
    error = yaw_errors(found.yaw[scenes, columns], true.yaw[scenes, rows], kind).rad2deg()
    turned = {
        name: error[(kind == index) & (kind_found == index)] for index, name in enumerate(KINDS) if PERIODS[index] > 0
    }
    turned = {"": torch.cat(list(turned.values())), **{f"/{name}": errors for name, errors in turned.items()}}
    for of, errors in turned.items():
        if len(errors):
            metrics |= _spread("yaw_error_degrees", errors, of)
    return metrics


def _spread(name: str, errors: Tensor, of: str = "") -> dict[str, float]:
    """The median and the 90th percentile of errors."""
    return {f"{name}{of}": float(errors.median()), f"{name}_p90{of}": float(errors.quantile(0.9))}


def _on_cpu(solids: Solids) -> Solids:
    return Solids(*(getattr(solids, field.name).cpu() for field in fields(solids)))
