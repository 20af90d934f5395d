"""Objectives of several particles per image: log weights, and chunks of particles that bound the memory."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pplmodels.infer.elbos.autograd import Gradients
from pplmodels.infer.elbos.replayed_noise import Recorded, Replayed
from pplmodels.memo import is_memoising, memoise
from pplmodels.rng import fork_rng
from pplmodels.sites import Site, random_sites

PLATE = "num_particles_vectorized"  # as in Pyro


class Weights(NamedTuple):
    """What a surrogate needs to know about all particles, without gradients.

    ``normalised (C, M)`` sums to 1 over all particles of an image. ``signal (C, M)`` is the learning signal of the
    score function. C is the number of particles of a run and M the number of images.
    """

    normalised: Tensor
    signal: Tensor

    def part(self, start: int, size: int) -> "Weights":
        """The weights of a chunk of particles."""
        return Weights(*(tensor[start : start + size] for tensor in self))


class Particles:
    """A run of a pair with C particles for each of M images.

    An image is an entry of the plate "data" or, if there is none, of the outermost plate of the observed site, together
    with the plates around it. Without any plate, the run counts as one image.

    ============  ==============  ==================================================================
    attribute     shape           meaning
    ============  ==============  ==================================================================
    model, guide  ...             sites by name
    latents       ...             names of the guide's random choices; Delta sites are no choices
    scale         (M) or a float  scale of each image
    log_p         (C, M)          log-probability of the model's sites, divided by the scale
    log_q         (C, M)          log-probability of the guide's sites, divided by the scale
    outside       ()              terms of sites that are not in the plate, summed over the particles
    ============  ==============  ==================================================================

    The scale of an image is that of its observed site (of the smallest one, if there are several), without the factors
    of subsampled plates inside the image. An image's log weight is the sum of its terms, each multiplied by its own
    scale divided by that of the image. So a weight is unscaled if all sites have the same scale, and a KL weight beta
    is an exponent, ``p(x | z) (p(z) / q(z | x))^beta``.
    """

    def __init__(self, model_trace: Trace, guide_trace: Trace, number: int, dim: int):
        self.model, self.guide = dict(random_sites(model_trace)), dict(random_sites(guide_trace))
        self.number = number
        self.plates = _image_plates([*self.model.values(), *self.guide.values()])
        self.latents = [name for name, site in self.guide.items() if is_latent(site)]
        self._check()
        self._sizes = {frame.dim: frame.size for frame in self.plates if frame.dim is not None}
        self._dims = sorted({*self._sizes, dim} if number > 1 else self._sizes)
        self._scale = self._image_scale()
        self.scale = self._scale
        if isinstance(self._scale, Tensor) and self._scale.dim():
            self.scale = self.per_image(self._scale)[0]
        zero = next(iter(self.model.values()))["log_prob"].new_zeros(number, 1)
        of_model, of_guide = (
            {name: self.term(site) for name, site in sites.items() if self.is_inside(site)}
            for sites in (self.model, self.guide)
        )
        self._check_sizes(of_model | of_guide)
        self.log_p, self.log_q = sum(of_model.values(), zero), sum(of_guide.values(), zero)
        self.outside = zero.sum()
        for sign, sites in ((1, self.model), (-1, self.guide)):
            for site in sites.values():
                if not self.is_inside(site):
                    self.outside = self.outside + sign * site["log_prob_sum"]

    @property
    def log_weight(self) -> Tensor:
        """The log weight of each particle, ``(C, M)``."""
        return self.log_p - self.log_q

    def is_inside(self, site: Site) -> bool:
        """Whether a site belongs to an image."""
        return not self.plates or self.plates[-1] in site["cond_indep_stack"]

    def term(self, site: Site) -> Tensor:
        """A site's log-probability, divided by the scale of the image, ``(C, M)``."""
        return self.per_image(scale_and_mask(site["unscaled_log_prob"], self.relative_scale(site), site["mask"]))

    def relative_scale(self, site: Site) -> Tensor | float:
        """A site's scale divided by that of the image. It is 1 where both are 0."""
        scale, image = site["scale"], self._scale
        if isinstance(image, Tensor):
            return torch.where(image == 0, 1.0, scale / torch.where(image == 0, 1.0, image))
        return scale / image if image else 1.0

    def per_image(self, value: Tensor) -> Tensor:
        """Sum a value of a site's batch shape to ``(C, M)``, or to ``(1, M)`` if it is the same for all particles."""
        kept = -min(self._dims, default=0)
        value = value.reshape((1,) * (kept - value.dim()) + value.shape)
        summed = [d for d in range(-value.dim(), 0) if d not in self._dims]
        value = value.sum(summed) if summed else value
        value = value.float() if value.dtype.itemsize < 4 else value
        return value.reshape(len(value) if self.number > 1 else 1, -1)

    def spread(self, weights: Tensor, site: Site) -> Tensor:
        """Values ``(C, M)`` in a shape that broadcasts to the values of a site."""
        sizes = self._sizes
        if len(sizes) == 1:  # its size may be unknown to Pyro
            sizes = dict.fromkeys(sizes, weights.shape[1])
        shape = [sizes.get(d, 1) for d in range(min(sizes, default=0), 0)]
        if self.number > 1:
            dim = min(self._dims)
            shape = [len(weights), *[1] * (-dim - 1 - len(shape)), *shape]
        return weights.reshape([*shape, *[1] * site["fn"].event_dim])

    def _check(self) -> None:
        for frame in self.plates:
            if not frame.vectorized:
                raise ValueError(
                    f'the plate "{frame.name}" is a loop, but importance weights need a vectorized plate over the '
                    "images: use it as a context"
                )
        for name, site in self.guide.items():
            if name in self.latents and not self.is_inside(site):
                raise ValueError(
                    f'{name} of the guide is outside of the plate "{self.plates[-1].name}", but guides whose sites '
                    "leave the data plate have no importance weights per image: use an ELBO of Pyro"
                )
        for name, site in self.model.items():
            if not site["is_observed"] and name not in self.guide:
                raise ValueError(
                    f"{name} is only a site of the model, but importance weights need a guide of all latents"
                )
            if self.number > 1 and not self.is_inside(site) and is_validation_enabled():
                value = site["log_prob"].detach()
                if not torch.equal(value, value[:1].expand_as(value)):
                    raise ValueError(
                        f'{name} of the model is outside of the plate "{self.plates[-1].name}" but depends on latents '
                        "inside, so its term belongs to no image: move it into the plate"
                    )

    def _check_sizes(self, terms: dict[str, Tensor]) -> None:
        sizes = {name: term.shape[1] for name, term in terms.items()}
        largest = max(sizes.values(), default=1)
        for name, size in sizes.items():
            if size < largest:
                raise ValueError(
                    f'{name} has {size} values in the plate "{self.plates[-1].name}" of {largest} images, so it has no '
                    "term per image: give the plate its size"
                )

    def _image_scale(self) -> Tensor | float:
        """The scale of each image, broadcastable to batch shapes."""
        scales = []
        for site in self.model.values():
            if site["is_observed"] and self.is_inside(site):
                parts = [
                    frame for frame in site["cond_indep_stack"] if frame.name != PLATE and frame not in self.plates
                ]
                scales.append(self._smallest(site["scale"]) / _subsampling(parts))
        return reduce(_minimum, scales) if scales else _subsampling(self.plates)

    def _smallest(self, scale: Tensor | float) -> Tensor | float:
        """The smallest scale of the parts of each image."""
        if not isinstance(scale, Tensor):
            return scale
        inner = [d for d in range(-scale.dim(), 0) if d not in self._dims]
        return scale.amin(inner, keepdim=True) if inner else scale


def is_latent(site) -> bool:
    """Whether a guide's site is a random choice. A Delta is a deterministic function of other choices."""
    return not (site["is_observed"] or site_is_subsample(site) or isinstance(unwrapped(site["fn"]), Delta))


def unwrapped(function):
    """A distribution without masks, expansions and reinterpreted batch dimensions."""
    while isinstance(function, Independent | MaskedDistribution | ExpandedDistribution):
        function = function.base_dist
    return function


def _image_plates(sites: Sequence[Site]) -> tuple[CondIndepStackFrame, ...]:
    """The plates whose entries are images, from outside to inside."""
    for site in sites:
        for number, frame in enumerate(plates := _plates(site), 1):
            if frame.name == "data":
                return tuple(plates[:number])
    outermost = (_plates(site)[:1] for site in sites if site["is_observed"])
    return tuple(next(filter(None, outermost), ()))


def _plates(site: Site) -> list[CondIndepStackFrame]:
    """The plates around a site, from outside to inside, without that of the particles."""
    return [frame for frame in site["cond_indep_stack"] if frame.name != PLATE]


def _subsampling(plates: Sequence[CondIndepStackFrame]) -> float:
    """The factor by which plates scale their sites."""
    return math.prod((f.full_size or f.size) / f.size for f in plates if f.vectorized and f.size > 0)


def _minimum(first: Tensor | float, second: Tensor | float) -> Tensor | float:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return torch.minimum(*torch.broadcast_tensors(*map(torch.as_tensor, (first, second))))
    return min(first, second)


class Cut(Messenger):
    """Replaces the value of each of the guide's random choices by a copy, at which gradients end.

    ``sampled`` holds the values, whose gradients end at the copies of earlier choices, and ``leaves`` the copies.
    Nothing is replaced in the run of the model that follows that of the guide.

    Arguments:
        active: whether to replace anything.
        path: whether the copies require gradients.
    """

    def __init__(self, active: bool = True, path: bool = False) -> None:
        super().__init__()
        self.active, self.path = active, path
        self.sampled: dict[str, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}
        self._seen: set[str] = set()

    def _pyro_post_sample(self, msg) -> None:
        name, value = msg["name"], msg["value"]
        if name in self._seen:
            return
        self._seen.add(name)
        if self.active and is_latent(msg):
            self.sampled[name] = value
            leaf = self.leaves[name] = value.detach()
            if self.path and torch.is_grad_enabled() and leaf.is_floating_point():
                leaf.requires_grad_()
            msg["value"] = leaf


class _SameSubsamples(Messenger):
    """All runs inside this context see the same part of a plate that subsamples."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: dict[str, Tensor] = {}

    def _pyro_sample(self, msg) -> None:
        if site_is_subsample(msg) and msg["value"] is None and msg["name"] in self.indices:
            msg["value"] = self.indices[msg["name"]]

    def _pyro_post_sample(self, msg) -> None:
        if site_is_subsample(msg) and msg["name"] != PLATE:
            self.indices[msg["name"]] = msg["value"]


class ParticleELBO(ELBO, ABC):
    """An objective of K particles per image.

    The particles are drawn at once in a plate outside of all others, as by Pyro's ``vectorize_particles``, so the pair
    must accept an additional leading batch dimension. With ``chunk``, at most that many particles are drawn at once.
    All chunks are run twice: without gradients to get the weights, and again with the same random numbers to get the
    gradients, so the memory does not depend on K. The result is the same up to rounding. With ``chunk=1``, the plate is
    not needed, and any pair can be used. Batch normalization in training mode normalizes each chunk by itself.
    """

    def __init__(self, num_particles: int, chunk: int | None = None, **settings):
        for what, number in (("num_particles", num_particles), ("chunk", 1 if chunk is None else chunk)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{what} must be a whole number of at least 1, not {number!r}")
        super().__init__(num_particles=num_particles, **settings)
        self.chunk = num_particles if chunk is None else min(chunk, num_particles)

    @abstractmethod
    def _bound(self, log_weight: Tensor) -> tuple[Tensor, Weights]:
        """The bound per image ``(M)`` and the weights of all particles from log weights ``(K, M)``."""

    @abstractmethod
    def _surrogate(self, run: Particles, weights: Weights, cut: Cut) -> Tensor:
        """A scalar whose gradient is the estimator of that of the bound, from the particles of a run."""

    @abstractmethod
    def _cut(self) -> Cut:
        """What is applied to each run."""

    def _check(self, run: Particles) -> None:
        """Raise ValueError for a pair that is not supported."""

    def _further(self, run: Particles, model, guide, args: tuple, kwargs: dict) -> Tensor | float:
        """Terms of the surrogate that do not depend on the particles, once per estimate."""
        return 0.0

    def loss(self, model, guide, *args, **kwargs) -> float:
        """The negative bound."""
        with torch.no_grad():
            return -self._loss_and_surrogate_loss(model, guide, args, kwargs)[0].item()

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """The negative bound; adds its gradients to those of the parameters."""
        bound, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        surrogate.backward(retain_graph=self.retain_graph)
        return -bound.item()

    def _get_trace(self, model, guide, args, kwargs) -> tuple[Trace, Trace]:
        return get_importance_trace("flat", self.max_plate_nesting + 1, model, guide, args, kwargs)

    def _loss_and_surrogate_loss(self, model, guide, args, kwargs) -> tuple[Tensor, Tensor]:
        if self.max_plate_nesting == math.inf:
            with torch.no_grad(), fork_rng(), _buffers_restored(model, guide):
                self._guess_max_plate_nesting(model, guide, args, kwargs)
        run = _Runs(self, model, guide, args, kwargs)
        return run.in_chunks() if self.chunk < self.num_particles else run.at_once()


class _Runs:
    """The runs of a pair for one estimate."""

    def __init__(self, elbo: ParticleELBO, model, guide, args: tuple, kwargs: dict):
        self.elbo, self.model, self.guide, self.args, self.kwargs = elbo, model, guide, args, kwargs

    def run(self, number: int) -> tuple[Particles, Cut]:
        dim = -1 - self.elbo.max_plate_nesting
        model, guide = self.model, self.guide
        if number > 1:
            model, guide = (pyro.plate(PLATE, number, dim=dim)(program) for program in (model, guide))
        with (cut := self.elbo._cut()):
            run = Particles(*self.elbo._get_trace(model, guide, self.args, self.kwargs), number, dim)
        self.elbo._check(run)
        return run, cut

    def value(self, log_weight: Tensor, scale: Tensor | float, outside: Tensor) -> tuple[Tensor, Weights]:
        """The bound, summed over the images, and the weights."""
        bound, weights = self.elbo._bound(log_weight.detach())
        return (scale * bound).sum() + outside.detach() / self.elbo.num_particles, weights

    def at_once(self) -> tuple[Tensor, Tensor]:
        with _SameSubsamples():
            run, cut = self.run(self.elbo.num_particles)
            bound, weights = self.value(run.log_weight, run.scale, run.outside)
        if not torch.is_grad_enabled():
            return bound, -bound
        return bound, -self.elbo._surrogate(run, weights, cut) - self.further(run)

    def in_chunks(self) -> tuple[Tensor, Tensor]:
        number, chunk = self.elbo.num_particles, self.elbo.chunk
        sizes = [min(chunk, number - start) for start in range(0, number, chunk)]
        noise = [Recorded() for _ in sizes]
        runs = []
        gradients_needed = torch.is_grad_enabled()
        with torch.no_grad(), _SameSubsamples(), _buffers_restored(self.model, self.guide):
            for size, recorded in zip(sizes, noise, strict=True):
                with recorded if gradients_needed else nullcontext(), _memoise_apart():
                    run, _ = self.run(size)
                    runs.append((run.log_weight, run.scale, run.outside))
        log_weights, scales, outside = zip(*runs, strict=True)
        bound, weights = self.value(torch.cat(log_weights), scales[0], sum(outside))
        if not gradients_needed:
            return bound, -bound
        gradients, start = Gradients(), 0
        with _SameSubsamples():
            for size, recorded in zip(sizes, noise, strict=True):
                with Replayed(recorded.results), _memoise_apart():
                    run, cut = self.run(size)
                gradients.add(self.elbo._surrogate(run, weights.part(start, size), cut))
                recorded.results.clear()
                start += size
        return bound, -gradients.scalar(bound) - self.further(run)

    def further(self, run: Particles) -> Tensor | float:
        return self.elbo._further(run, self.model, self.guide, self.args, self.kwargs)


def _memoise_apart():
    """Memoization, if it is active, of one chunk only, so that nothing of it is kept."""
    return memoise() if is_memoising() else nullcontext()


@contextmanager
def _buffers_restored(*programs: Callable) -> Iterator[None]:
    """Restore the buffers of modules on exit, so that of two runs only one changes them."""
    modules = [p if isinstance(p, nn.Module) else getattr(p, "__self__", None) for p in programs]
    buffers = {id(b): b for m in modules if isinstance(m, nn.Module) and m.training for b in m.buffers()}
    before = [buffer.clone() for buffer in buffers.values()]
    try:
        yield
    finally:
        for buffer, value in zip(buffers.values(), before, strict=True):
            buffer.copy_(value)
