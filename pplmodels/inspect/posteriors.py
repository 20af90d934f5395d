"""Posterior, predictive and prior samples as arrays with named dimensions, for xarray and ArviZ."""

import itertools
import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import reduce
from types import ModuleType

import numpy as np
import torch
import xarray
from pyro import plate, poutine
from pyro.nn import PyroModule
from torch import Tensor

from pplmodels.infer.looking import looking
from pplmodels.infer.traces import steps
from pplmodels.metrics.bounds import base_site_name, log_probs
from pplmodels.sites import random_sites

MAX_BATCH = 1024  # number of images times samples in one run of a pair


@torch.no_grad()
def posterior(
    model, guide, x: Tensor, num_samples: int = 100, sites: Collection[str] | None = None, max_batch: int = MAX_BATCH
):
    """Samples of q(z | x) of the images ``x (B, C, H, W)`` with named dimensions, and their log-probabilities.

    The groups have dimensions ``(chain, draw, image, ...)``:

    - ``posterior``: the guide's samples of each site. The steps of a site (``z_what_1``, ``z_what_2``, ...) are
      one variable with a dimension ``step``; further dimensions are named by the modules' ``dims`` and ``coords``;
    - ``sample_stats``: ``lp``, log p(x, z), and ``log_weight``, log p(x, z) - log q(z | x), in nats;
    - ``log_likelihood``: log p(x | z) of each observed site and image;
    - ``observed_data``: the images, without chain and draw.

    Samples are independent, so there is one chain. The memory use is that of the result and of one run of the pair.

    Arguments:
        num_samples: samples per image.
        sites: names of the variables to keep (default: all).
        max_batch: number of images times samples in one run of the pair.

    Returns:
        InferenceData if the installed ArviZ is older than version 1.0, otherwise an :class:`xarray.DataTree`.

    >>> from guides import MLPGuide
    >>> from pplmodels import MLPVAE
    >>> pair = MLPVAE(image=(1, 4, 4), z_dim=3), MLPGuide(image=(1, 4, 4), z_dim=3)
    >>> found = posterior(*pair, torch.rand(5, 1, 4, 4).round(), num_samples=20)
    >>> dict(found.posterior["z"].sizes)
    {'chain': 1, 'draw': 20, 'image': 5, 'latent': 3}
    """
    kept: dict[tuple[str, str], list[np.ndarray]] = {}  # by group and name
    for images in x.split(max_batch):
        rows: dict[tuple[str, str], list[np.ndarray]] = {}
        for draws in chunks(num_samples, max_batch // len(images)):
            log_p, log_q, values = log_probs(model, guide, images, draws)
            joint, shape = reduce(torch.add, log_p.values()), (draws, len(images))
            found = {("posterior", name): value for name, value in values.items() if _wanted(name, sites)}
            found |= {("log_likelihood", name): log_p[name] for name in log_p.keys() - log_q.keys()}
            found["sample_stats", "lp"] = joint
            found["sample_stats", "log_weight"] = joint - sum(log_q.values(), joint.new_zeros(()))
            for key, value in found.items():
                rows.setdefault(key, []).append(_array(value.expand(*shape, *value.shape[2:])))
        for key, parts in rows.items():
            kept.setdefault(key, []).append(np.concatenate(parts))
    groups: dict[str, dict[str, np.ndarray]] = {}
    for (group, name), parts in kept.items():
        groups.setdefault(group, {})[name] = np.concatenate(parts, 1)[None]
    leading = ("chain", "draw", "image")
    observed = {name: _array(x) for name in groups["log_likelihood"]}
    named = {"posterior": (model, guide)}  # the other groups have one number per image
    datasets = {group: labelled(variables, leading, named.get(group, ())) for group, variables in groups.items()}
    return _for_arviz({**datasets, "observed_data": labelled(observed, ("image",), (model, guide))})


@looking
def predictive(model, guide, x: Tensor, num_samples: int = 100, max_batch: int = MAX_BATCH):
    """Samples of the observed sites from p(x' | z) at the guide's samples, in the group ``posterior_predictive``.

    Dimensions are ``(chain, draw, image, ...)``. Arguments and result are as for :func:`posterior`, with
    ``observed_data``.
    """
    kept: dict[str, list] = {}
    for images in x.split(max_batch):
        rows: dict[str, list] = {}
        for draws in chunks(num_samples, max_batch // len(images)):
            with plate("samples", draws, dim=-2):
                guide_trace = poutine.trace(guide).get_trace(images)
                trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(n=len(images))
            for name, site in random_sites(trace):
                if name not in guide_trace.nodes:
                    rows.setdefault(name, []).append(_array(site["value"]))
        for name, parts in rows.items():
            kept.setdefault(name, []).append(np.concatenate(parts))
    drawn = {name: np.concatenate(parts, 1)[None] for name, parts in kept.items()}
    datasets = {"posterior_predictive": labelled(drawn, ("chain", "draw", "image"), (model,))}
    observed = {name: _array(x) for name in drawn}
    return _for_arviz({**datasets, "observed_data": labelled(observed, ("image",), (model,))})


@looking
def prior(model, num_samples: int = 100, max_batch: int = MAX_BATCH):
    """Samples from the model: its latents in the group ``prior`` and observations in ``prior_predictive``.

    Dimensions are ``(chain, draw, ...)``. Arguments and result are as for :func:`posterior`.
    """
    rows: dict[str, list] = {}
    for draws in chunks(num_samples, max_batch):
        trace = poutine.trace(model).get_trace(n=draws)
        scored = poutine.trace(model).get_trace(trace.nodes["_RETURN"]["value"])
        for name, site in random_sites(trace):
            rows.setdefault(name, []).append(_array(site["value"]))
    drawn = {name: np.concatenate(parts)[None] for name, parts in rows.items()}
    groups = {
        "prior": {name: value for name, value in drawn.items() if not scored.nodes[name]["is_observed"]},
        "prior_predictive": {name: value for name, value in drawn.items() if scored.nodes[name]["is_observed"]},
    }
    return _for_arviz({name: labelled(part, ("chain", "draw"), (model,)) for name, part in groups.items()})


def chunks(number: int, most: int) -> Iterator[int]:
    """Split ``number`` into parts of at most ``most`` and at least 1."""
    most = max(1, most)
    return (min(most, number - start) for start in range(0, number, most))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _wanted(site: str, sites: Collection[str] | None) -> bool:
    return sites is None or site in sites or base_site_name(site) in sites


def labelled(
    sites: Mapping[str, np.ndarray], leading: tuple[str, ...], modules: tuple[PyroModule, ...]
) -> xarray.Dataset:
    """A dataset of arrays whose first dimensions are ``leading``. The steps of a site are stacked."""
    variables = {}
    for name in dict.fromkeys(map(base_site_name, sites)):
        values = [sites[name]] if name in sites else steps(sites, name)
        dims = _dims(name, values[0].ndim - len(leading), modules)
        if name in sites:
            variables[name] = (*leading, *dims), sites[name]
        elif len({value.shape for value in values}) == 1:
            variables[name] = (*leading, "step", *dims), np.stack(values, len(leading))
        else:
            raise ValueError(f"the steps of {name} have different shapes, so they have no common dimensions")
    coords = dict(itertools.chain.from_iterable(getattr(module, "coords", {}).items() for module in modules))
    sizes = {dim: size for dims, value in variables.values() for dim, size in zip(dims, value.shape, strict=True)}
    first = {"step": 1}
    counted = {dim: np.arange(size) + first.get(dim, 0) for dim, size in sizes.items()}
    labels = {dim: list(coords[dim]) if dim in coords else numbers for dim, numbers in counted.items()}
    return xarray.Dataset(variables, labels)


def _dims(name: str, number: int, modules: tuple[PyroModule, ...]) -> tuple[str, ...]:
    """The names of a site's event dimensions in the modules, or ArviZ's default names."""
    for module in modules:
        dims = getattr(module, "dims", {}).get(name)
        if dims is not None:
            if len(dims) != number:
                raise ValueError(
                    f"{type(module).__name__}.dims names {len(dims)} dimensions of {name}, but it has {number}"
                )
            return dims
    return tuple(f"{name}_dim_{index}" for index in range(number))


def import_arviz() -> ModuleType:
    """ArviZ, which is imported when it is first used because that takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # version 0.23 warns about 1.0
        import arviz
    return arviz


def _for_arviz(groups: dict[str, xarray.Dataset]):
    arviz = import_arviz()
    tree = xarray.DataTree.from_dict({name: dataset for name, dataset in groups.items() if dataset})
    return arviz.from_datatree(tree) if hasattr(arviz, "from_datatree") else tree
