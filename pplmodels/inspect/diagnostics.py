"""How far a guide is from the posterior, and how noisy its gradients are, for any pair."""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyro
import scipy.stats
import torch
import xarray
from pyro import poutine
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from pyro.infer import ELBO
from pyro.poutine import Trace
from torch import Tensor, nn

from pplmodels.defaults import default_device
from pplmodels.errors import InputError
from pplmodels.infer.compile.state import unconstrained
from pplmodels.infer.elbos.protocol import Objective
from pplmodels.infer.looking import looking, put_back
from pplmodels.infer.svi import SVI
from pplmodels.infer.traces import Stated, local_params, pair_traces
from pplmodels.inspect.posteriors import MAX_BATCH, chunks, import_arviz, labelled
from pplmodels.memo import memoise
from pplmodels.metrics.bounds import log_probs, log_weights
from pplmodels.metrics.gradient_noise import gradient_variances, site_gradient_variances
from pplmodels.rng import fork_rng
from pplmodels.sites import Site, random_sites

FEWEST = 25  # samples, so that the tail of their weights has the 5 that a Pareto fit needs
EQUAL = 1e-9  # relative difference of weights below which float64 cannot resolve the shape of their tail
PER_BIN = 5  # expected number of ranks in a bin from which the chi-square approximation is good

Statistic = Callable[[Mapping[str, Tensor]], Tensor]


@torch.no_grad()
def weight_diagnostics(model, guide, x: Tensor, num_samples: int = 1000, max_batch: int = MAX_BATCH) -> xarray.Dataset:
    """How well the guide covers the posterior of each image of ``x (B, ...)``, from its importance weights.

    The weights are w_k = p(x, z_k) / q(z_k | x) for K = ``num_samples`` samples z_k of the guide. All variables have
    the dimension ``image``:

    - ``pareto_k``: the shape k of a generalized Pareto distribution fitted to the largest weights by ArviZ (Vehtari et
      al. 2024, arXiv 1507.02646). The weights have finite moments up to order 1/k. The larger k is, the more of the
      posterior the guide misses. Above the attribute ``threshold``, min(1 - 1 / log10 K, 0.7) (section 3.2.4 there), K
      samples are too few for a reliable estimate. It is NaN if the largest weights are equal, as they are for an exact
      posterior, because they then have no tail;
    - ``ess``: the effective sample size, (sum w)^2 / sum w^2;
    - ``bound``: the importance-weighted bound, log mean w, in nats;
    - ``elbo``: mean log w, in nats.

    The memory use is that of one run on ``max_batch`` images times samples, and of the weights of ``max_batch`` images.
    Raises :class:`InputError` for fewer than 25 samples.

    >>> from guides import MLPGuide
    >>> from pplmodels import MLPVAE
    >>> pair = MLPVAE(image=(1, 4, 4), z_dim=3), MLPGuide(image=(1, 4, 4), z_dim=3)
    >>> found = weight_diagnostics(*pair, torch.rand(5, 1, 4, 4).round(), num_samples=100)
    >>> list(found), dict(found.sizes), found.threshold
    (['pareto_k', 'ess', 'bound', 'elbo'], {'image': 5}, 0.5)
    """
    if num_samples < FEWEST:
        raise InputError(f"a Pareto fit needs the weights of at least {FEWEST} samples, not {num_samples}.")
    parts = []
    for images in x.split(max_batch):
        rows = [
            log_weights(log_probs(model, guide, images, draws), len(images)).expand(draws, -1)
            for draws in chunks(num_samples, max_batch // len(images))
        ]
        weights = torch.cat(rows)
        total = weights.logsumexp(0)
        part = {
            "pareto_k": torch.from_numpy(_pareto_k(weights.T.cpu().numpy())),
            "ess": (2 * total - (2 * weights).logsumexp(0)).exp(),
            "bound": total - math.log(num_samples),
            "elbo": weights.mean(0),
        }
        parts.append({name: value.cpu().numpy() for name, value in part.items()})
    variables = {name: ("image", np.concatenate([part[name] for part in parts])) for name in parts[0]}
    attributes = {"num_samples": num_samples, "threshold": min(1 - 1 / math.log10(num_samples), 0.7)}
    return xarray.Dataset(variables, {"image": np.arange(len(x))}, attributes)


def _pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Pareto's k of each row of ``log_weights (B, K)``; NaN where the largest weights are equal or not finite."""
    number = log_weights.shape[1]
    tail = int(min(number / 5, 3 * number**0.5))
    largest = np.sort(log_weights)[:, -tail:]
    with np.errstate(invalid="ignore"):
        fits = largest[:, -1] - largest[:, 0] > EQUAL
    shapes = np.full(len(log_weights), np.nan)
    if fits.any():
        shapes[fits] = _psis(log_weights[fits])
    return shapes


def _psis(log_weights: np.ndarray) -> np.ndarray:
    arviz = import_arviz()
    if hasattr(arviz, "psislw"):
        return arviz.psislw(log_weights)[1]
    array_stats = importlib.import_module("arviz_stats.base").array_stats  # ArviZ 1
    return array_stats.psislw(-log_weights)[1]  # of the logarithms of 1 / w


@dataclass(frozen=True)
class Calibration:
    """Ranks of true latents among samples of the guide, and p-values of the hypothesis that they are uniform.

    ``ranks`` has the dimension ``dataset`` and the dimensions of each latent or statistic, and ``p_values`` has only
    the latter. The attributes ``num_samples`` and ``num_bins`` of ``ranks`` are those of the test.
    """

    ranks: xarray.Dataset
    p_values: xarray.Dataset


@looking
def calibration(
    model,
    guide,
    num_datasets: int = 1000,
    num_samples: int = 99,
    statistics: Mapping[str, Statistic] | None = None,
    num_bins: int = 20,
    max_batch: int = MAX_BATCH,
) -> Calibration:
    """Simulation-based calibration of an amortized guide (Talts et al. 2018, arXiv 1804.06788, algorithm 1).

    Each dataset is one image: z* and x are drawn from the model, and S = ``num_samples`` samples z_s from q(z | x). If
    the guide is the exact posterior, the rank of each coordinate of z*, the number of samples below it, is uniform on
    0..S. Ranks at both ends (a U shape) show an overconfident guide, ranks in the middle one that is too wide, and a
    slope shows a bias. This tests the guide for images from the model, not for data.

    - Ties, e.g. of discrete latents, are broken at random, which keeps the ranks uniform.
    - A value that is masked in the model, such as AIR's z_where after the stop, has no meaning. Its rank is NaN if it
      is masked in z*. Otherwise the rank is among the M samples in which it is not masked. It is scaled by
      (S + 1) / (M + 1), and randomized in between. So it tests q(z_where | z_pres = 1, x) and not z_pres.
    - Each p-value is that of a chi-square test with ``num_bins`` bins, for one coordinate. With many coordinates, some
      are small by chance. It is NaN if there are fewer than 5 ranks per bin.

    Arguments:
        num_datasets: number of images that are drawn.
        statistics: functions of the latents, whose ranks are returned in addition, by name. They get a dict of values
            ``(..., B, *event)`` for B images and return ``(..., B)`` or more dimensions, e.g.
            ``{"count": inspect.count_objects}``. Each is a test of its own that can find other errors.
        num_bins: number of bins, which divides S + 1.
        max_batch: number of images times samples in one run of the pair.

    Raises :class:`InputError` if the model cannot be sampled without x.

    >>> from guides import MLPGuide
    >>> from pplmodels import MLPVAE
    >>> pair = MLPVAE(image=(1, 4, 4), z_dim=3), MLPGuide(image=(1, 4, 4), z_dim=3)
    >>> found = calibration(*pair, num_datasets=200)
    >>> dict(found.ranks["z"].sizes), dict(found.p_values["z"].sizes)
    ({'dataset': 200, 'latent': 3}, {'latent': 3})
    """
    if num_bins < 2 or num_samples < 1 or (num_samples + 1) % num_bins:
        raise InputError(
            f"{num_samples} samples give {num_samples + 1} possible ranks, which cannot be divided evenly into "
            f"{num_bins} bins."
        )
    if num_datasets < PER_BIN * num_bins:
        raise InputError(f"{num_bins} bins need at least {PER_BIN * num_bins} datasets, not {num_datasets}.")
    rows: dict[str, list[np.ndarray]] = {}
    for images in chunks(num_datasets, max_batch):
        trace, x = _simulated(model, images)
        counts: dict[str, _Counts] = {}
        for draws in chunks(num_samples, max_batch // images):
            with pyro.plate("samples", draws, dim=-2), memoise():
                guide_trace, model_trace = pair_traces(model, guide, x)
            inferred = [name for name, site in random_sites(guide_trace) if name in trace.nodes]
            true = _values(trace, inferred, (images,), statistics or {})
            for name, (value, used) in _values(model_trace, inferred, (draws, images), statistics or {}).items():
                counts.setdefault(name, _Counts(*true[name])).add(value, used)
        if not counts:
            raise InputError("the guide has no latents whose calibration could be tested.")
        for name, count in counts.items():
            rows.setdefault(name, []).append(count.ranks(num_samples).cpu().numpy())
    ranks = {name: np.concatenate(parts) for name, parts in rows.items()}
    p_values = {name: _uniformity(rank, num_samples, num_bins) for name, rank in ranks.items()}
    found = labelled(ranks, ("dataset",), (model, guide))
    found.attrs = {"num_samples": num_samples, "num_bins": num_bins}
    return Calibration(found, labelled(p_values, (), (model, guide)))


def _simulated(model, number: int) -> tuple[Trace, Tensor]:
    """The trace of ``number`` images drawn from the model, and the images."""
    drawing = f"calibration draws images from the model, but model(n={number})"
    try:
        trace = poutine.trace(model).get_trace(n=number)
    except Exception as error:  # user code may raise any exception
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(f"{drawing} fails with {reason}") from error
    x = trace.nodes["_RETURN"]["value"]
    if not isinstance(x, Tensor) or x.shape[:1] != (number,):
        raise InputError(f"{drawing} does not return a tensor of {number} images.")
    return trace, x


def _values(
    trace: Trace, names: list[str], batch: tuple[int, ...], statistics: Mapping[str, Statistic]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The values of sites and statistics, ``(*batch, ...)``, and which of them are not masked, of the same shape."""
    sites = {name: site for name, site in random_sites(trace) if name in names}
    latents = {name: site["value"].expand(*batch, *site["fn"].event_shape) for name, site in sites.items()}
    found = {name: (value, _used(sites[name]).expand_as(value)) for name, value in latents.items()}
    for name, statistic in statistics.items():
        if name in sites:
            raise InputError(f"the statistic {name!r} has the name of a site.")
        value = statistic(latents)
        if value.shape[: len(batch)] != batch:
            raise InputError(
                f"the statistic {name!r} has shape {tuple(value.shape)}, which does not begin with the dimensions "
                f"{batch} of the latents."
            )
        found[name] = value, torch.ones_like(value, dtype=torch.bool)
    return found


def _used(site: Site) -> Tensor:
    """Where the value of a site is not masked, broadcastable to its shape."""
    distribution, used = site["fn"], torch.ones((), dtype=torch.bool, device=site["value"].device)
    masks = [(site["mask"], distribution.event_dim)]
    while isinstance(distribution, (Independent, MaskedDistribution, ExpandedDistribution)):
        if isinstance(distribution, MaskedDistribution):
            masks.append((distribution._mask, distribution.event_dim))
        distribution = distribution.base_dist
    for mask, events in masks:
        if mask is not None:
            mask = torch.as_tensor(mask, device=used.device)
            used = used & mask.view(*mask.shape, *[1] * events)
    return used


class _Counts:
    """Counts samples below and equal to true values, which need not be kept."""

    def __init__(self, true: Tensor, used: Tensor):
        self.true, self.used = true, used
        self.below, self.equal, self.number = (torch.zeros_like(used, dtype=torch.float64) for _ in range(3))

    def add(self, value: Tensor, used: Tensor) -> None:
        """Add samples, in a leading dimension."""
        self.below += ((value < self.true) & used).sum(0)
        self.equal += ((value == self.true) & used).sum(0)
        self.number += used.sum(0)

    def ranks(self, num_samples: int) -> Tensor:
        """Ranks from 0 to ``num_samples``, uniform if the true value and the samples in use are exchangeable."""
        place = self.below + torch.rand_like(self.equal) * (self.equal + 1)  # uniform on [0, number + 1)
        rank = (place * ((num_samples + 1) / (self.number + 1))).floor().clamp(max=num_samples)
        return rank.where(self.used, math.nan)


def _uniformity(ranks: np.ndarray, num_samples: int, num_bins: int) -> np.ndarray:
    """The p-values of chi-square tests of ``ranks (N, ...)``."""
    bins = ranks * num_bins // (num_samples + 1)
    counts = np.stack([(bins == index).sum(0) for index in range(num_bins)])
    with np.errstate(invalid="ignore"):
        p_values = scipy.stats.chisquare(counts).pvalue
    return np.where(counts.mean(0) < PER_BIN, np.nan, p_values)


def gradient_noise(
    model,
    guide,
    objectives: Mapping[str, ELBO | Objective],
    x: Tensor,
    repeats: int = 16,
    by: Literal["module", "site"] = "module",
    compile: bool | str = False,
) -> xarray.DataArray:
    """The variance of the gradient estimates of some objectives on the batch ``x (B, ...)``.

    Weights and batch are fixed, and only the guide's samples differ
    (:func:`pplmodels.metrics.gradient_noise.gradient_variances`). All objectives are estimated ``repeats`` times,
    starting from the same state of the random generators, which are restored.

    The dimensions are ``(objective, module)`` or ``(objective, site)``:

    - By ``"module"``: the total variance of the gradient of the mean loss with respect to the parameters of each child
      of the two modules, in (nats per image per unit)^2. The names are those of attributes, such as ``guide.encoder``;
      parameters of the modules themselves have their own rows. It falls as 1/B with the batch size. For functions, the
      names are those of ``pyro.module`` and ``pyro.param``. Parameters of an objective that is a module are named
      ``objective.NAME``.
    - By ``"site"``: the total variance of the gradient of an image's loss with respect to the parameters of the
      distribution of each site of the guide, e.g. its mean and standard deviation, averaged over the images, in (nats
      per unit)^2. It does not depend on how the networks compute these parameters.

    Entries are NaN if an objective does not depend on the parameters.

    Arguments:
        objectives: ELBOs of Pyro or objectives (:class:`pplmodels.infer.Objective`) by name.
        repeats: number of gradient estimates per objective. The relative standard error of a variance is about
            (2 / repeats)^0.5, or less if it is the sum of many.
        by: the rows of the result.
        compile: as for :class:`pplmodels.infer.SVI`; only by module.

    >>> from guides import MLPGuide
    >>> from pplmodels import MLPVAE
    >>> from pyro.infer import Trace_ELBO
    >>> pair = MLPVAE(image=(1, 4, 4), z_dim=3), MLPGuide(image=(1, 4, 4), z_dim=3)
    >>> found = gradient_noise(*pair, {"Trace": Trace_ELBO()}, torch.rand(5, 1, 4, 4).round())
    >>> found.dims, list(found["module"].values)
    (('objective', 'module'), ['model.decoder', 'guide.encoder'])
    """
    if repeats < 2:
        raise InputError(f"a variance needs at least 2 estimates, not {repeats}.")
    if by not in ("module", "site"):
        raise InputError(f'the noise of gradients is given by "module" or by "site", not by {by!r}.')
    if by == "site" and compile:
        raise InputError("the noise of gradients by site needs compile=False, because a compiled step has no sites.")
    found: dict[str, dict[str, float]] = {}
    pair, x = {"model": model, "guide": guide}, x.detach()  # x may be drawn from the model
    with put_back(model, guide, *objectives.values()):
        with fork_rng(), local_params(), Stated(), default_device(x.device):
            learned = [named for role, program in pair.items() for named in _parameters(role, program, x)]
        for name, objective in objectives.items():
            own = _parameters("objective", objective, x) if isinstance(objective, nn.Module) else ()
            groups = _groups([*learned, *own])
            if not groups:
                raise InputError("neither model nor guide has parameters, so there are no gradients.")
            optim = torch.optim.SGD([p for group in groups.values() for p in group], lr=0.0)
            svi = SVI(model, guide, optim, objective, compile=compile)
            if by == "module":
                found[name] = gradient_variances(svi, (x,), groups, repeats)
            else:
                found[name] = site_gradient_variances(svi, (x,), repeats)
    labels = list(dict.fromkeys(label for variances in found.values() for label in variances))
    values = [[variances.get(label, math.nan) for label in labels] for variances in found.values()]
    coords: dict[str, Any] = {"objective": list(found), by: labels}
    return xarray.DataArray(np.array(values), coords, ("objective", by), "variance")


def _parameters(role: str, program, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a module, or those that a function uses on ``x``, named as parts of their role."""
    if role != "objective":
        trace = poutine.trace(program, param_only=True).get_trace(x)  # an AutoGuide has no parameters before
    if isinstance(program, nn.Module):
        named: list[tuple[str, Tensor]] = [*program.named_parameters()]
    else:
        sites = ((name, site) for name, site in trace.nodes.items() if site["type"] == "param")
        named = [(name.replace("$$$", "."), unconstrained(site["value"])) for name, site in sites]
    yield from ((f"{role}.{name}", p) for name, p in named if p.requires_grad)


def _groups(named: list[tuple[str, Tensor]]) -> dict[str, list[Tensor]]:
    """The parameters by the first two parts of their names. A parameter with several names has its first one."""
    groups: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for name, parameter in named:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            groups.setdefault(".".join(name.split(".")[:2]), []).append(parameter)
    return groups
