"""Importance-weighted bounds: IWAE (Burda et al. 2016, arXiv 1509.00519) and its gradient estimators."""

import math

import torch
from pyro.distributions.util import is_identically_zero
from torch import Tensor

from pplmodels.infer.elbos.particles import Cut, ParticleELBO, Particles, Weights
from pplmodels.infer.elbos.pathwise import pathwise_surrogate

PATHWISE = ("stl", "dreg", "gdreg")
GRADIENTS = ("plain", *PATHWISE, "vimco")


class ImportanceWeighted_ELBO(ParticleELBO):
    """The bound of K particles per image, ``log (1/K) sum_k w_k`` with ``w_k = p(x, z_k) / q(z_k | x)``, z_k ~ q.

    In expectation it is at least the ELBO and grows with K toward log p(x) (IWAE: Burda et al. 2016, arXiv 1509.00519).
    With ``alpha``, it is the variational Renyi bound (Li & Turner 2016, arXiv 1602.02311, equation 4)

    .. code-block:: text

        1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha),        alpha = 1: (1/K) sum_k log w_k

    Each image has its own weights (:class:`pplmodels.infer.elbos.particles.Particles`): an image is an entry of the
    plate "data" or, if there is none, of the outermost plate of the observed site. The log weight of an image is
    unscaled, and the loss is scaled like its observed sites. If other sites are scaled differently, such as by
    :class:`pplmodels.infer.ScaledKL`, the ratio is an exponent in the weight, ``w = p(x | z) (p(z) / q(z | x))^beta``.
    For K = 1, the bound and its plain gradient are those of TraceGraph_ELBO, without its baselines.

    ========  ==========================================================================================================
    gradient  estimator, with normalized weights v_k
    ========  ==========================================================================================================
    plain     the gradient of the bound. Sites without ``rsample`` get the score function with learning signals of their
              own for each image and particle: the bound minus the bound in which the particle's log weight is replaced
              by the mean of the others' (VIMCO: Mnih & Rezende 2016, arXiv 1602.06725, equations 8 to 10)
    vimco     VIMCO for all sites, also for those with ``rsample``
    stl       drops the score of q (Roeder et al. 2017, arXiv 1703.09194). For K > 1 it is biased, and at the exact
              posterior it is 0
    dreg      doubly reparameterized gradients (Tucker et al. 2019, arXiv 1810.04152, equation 8): unbiased, and its
              signal-to-noise ratio does not fall with K
    gdreg     also reparameterizes the scores of the model's latents (Bauer & Mnih 2021, arXiv 2101.11046), for
              priors with parameters and hierarchies of latents
    ========  ==========================================================================================================

    "stl", "dreg" and "gdreg" need reparameterized sites, and flows with an inverse. "gdreg" also needs latents of the
    model with locations and scales (Normal, Laplace, Cauchy, MultivariateNormal), and transforms of these. The loss
    is the same for all of them.

    Arguments:
        num_particles: K.
        gradient: a name in the table.
        alpha: order of the Renyi bound; 0 for IWAE.
        chunk: number of particles that are drawn at once, None for all (:class:`ParticleELBO`).
        ...: ``max_plate_nesting`` as for Pyro's ELBOs, without the plate of particles.
    """

    def __init__(
        self,
        num_particles: int = 5,
        gradient: str = "plain",
        *,
        alpha: float = 0.0,
        chunk: int | None = None,
        max_plate_nesting: float = math.inf,
    ):
        super().__init__(num_particles, chunk, max_plate_nesting=max_plate_nesting)
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, not {gradient!r}")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number, not {alpha!r}")
        if gradient == "vimco" and num_particles == 1:
            raise ValueError('gradient="vimco" compares particles with each other, so num_particles must be at least 2')
        self.gradient, self.alpha = gradient, alpha

    def _cut(self) -> Cut:
        return Cut(active=self.gradient != "plain", path=self.gradient in PATHWISE)

    def _check(self, run: Particles) -> None:
        for name in run.latents if self.gradient in PATHWISE else ():
            site = run.guide[name]
            if not (site["fn"].has_rsample and is_identically_zero(site["score_parts"].score_function)):
                raise ValueError(
                    f'{name} of the guide is not reparameterized, but gradient="{self.gradient}" needs the path of its '
                    'samples: use gradient="plain", which applies VIMCO to such sites'
                )

    def _bound(self, log_weight: Tensor) -> tuple[Tensor, Weights]:
        bound, without = renyi(log_weight, self.alpha), leave_one_out(log_weight, self.alpha)
        return bound, Weights(((1 - self.alpha) * log_weight).softmax(0), bound - without)

    def _surrogate(self, run: Particles, weights: Weights, cut: Cut) -> Tensor:
        if self.gradient in PATHWISE:
            shrink = 0.0 if self.gradient == "stl" else 1 - self.alpha
            return pathwise_surrogate(run, weights, cut, self.num_particles, shrink, self.gradient == "gdreg")
        surrogate = (run.scale * weights.normalised * run.log_weight).sum() + run.outside / self.num_particles
        for name in run.latents:
            score = run.guide[name]["score_parts"].score_function
            if self.gradient == "vimco":
                score = run.guide[name]["unscaled_log_prob"]
            if not is_identically_zero(score):
                surrogate = surrogate + (run.scale * weights.signal * run.per_image(score)).sum()
        return surrogate


def renyi(log_weight: Tensor, alpha: float) -> Tensor:
    """The Renyi bound of order ``alpha`` of each image from log weights ``(K, M)``."""
    if alpha == 1:
        return log_weight.mean(0)
    return (((1 - alpha) * log_weight).logsumexp(0) - math.log(len(log_weight))) / (1 - alpha)


def leave_one_out(log_weight: Tensor, alpha: float) -> Tensor:
    """The Renyi bound ``(K, M)`` with each particle's log weight replaced by the mean of the others'.

    It is 0 for a single particle, which has no others.
    """
    number = len(log_weight)
    if number == 1:
        return torch.zeros_like(log_weight)
    lost = log_weight == -math.inf  # of impossible samples, whose mean with others is lost too
    finite = log_weight.masked_fill(lost, 0.0)
    others = (finite.sum(0) - finite) / (number - 1)
    others = others.masked_fill(lost.sum(0) - lost.long() > 0, -math.inf)
    if alpha == 1:
        return others
    scaled = (1 - alpha) * log_weight
    none = torch.full_like(scaled[:1], -math.inf)
    before = torch.cat([none, scaled.logcumsumexp(0)[:-1]])
    after = torch.cat([scaled.flip(0).logcumsumexp(0)[:-1].flip(0), none])
    total = torch.logaddexp(torch.logaddexp(before, after), (1 - alpha) * others)
    return (total - math.log(number)) / (1 - alpha)
