"""The gradient estimators of single sites: which one a site has, and which ones its distribution allows.

=============  ==========================================================================================
``reparam``    the pathwise gradient through a reparameterized sample
``reinforce``  the score function times the downstream cost, with an optional baseline
``rloo``       the score function, whose baseline is the mean cost of the image's other particles
``enum``       the site is summed out: the expectation over its values is computed instead of sampled
``mvd``        a measure-valued derivative: the costs of a positive and a negative value are compared
=============  ==========================================================================================
"""

from collections.abc import Mapping

import torch
from pyro.distributions import Delta, Independent, MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pplmodels.infer.elbos.measure_valued import FAMILIES, family_of
from pplmodels.sites import Site, base_site_name

ESTIMATORS = ("reparam", "reinforce", "rloo", "enum", "mvd")
SCORED = ("reinforce", "rloo")


def chosen_estimator(site: Site, overrides: Mapping[str, str], particles: int) -> str:
    """The estimator of a latent site of the guide.

    It is given by ``overrides``, whose keys are names without step numbers, or by ``infer={"estimator": ...}``.
    Otherwise, it is "reparam" if the distribution has reparameterized samples, and "reinforce" if not. Raises
    ValueError if there is no such estimator, or if it does not apply to the site.
    """
    default = "reparam" if site["fn"].has_rsample else "reinforce"
    estimator = overrides.get(base_site_name(site["name"]), site["infer"].get("estimator", default))
    check_known(site["name"], estimator)
    if reason := _why_not(estimator, site["fn"], particles):
        raise ValueError(f"site {site['name']} cannot have the estimator {estimator}: {reason}.")
    return estimator


def check_known(name: str, estimator: object) -> None:
    """Raise ValueError if there is no estimator of this name."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"site {name} has the estimator {estimator!r}, which is not one of {', '.join(ESTIMATORS)}.")


def unmasked(function: TorchDistributionMixin) -> TorchDistributionMixin:
    """A distribution without masks, with which it would be no distribution where it is masked."""
    while isinstance(function, MaskedDistribution):
        function = function.base_dist
    return function


def univariate(function: TorchDistributionMixin) -> TorchDistributionMixin:
    """A distribution without masks and declared event dimensions."""
    while isinstance(function, MaskedDistribution | Independent):
        function = function.base_dist
    return function


def support(function: TorchDistributionMixin) -> Tensor:
    """All values of a distribution with finite support, ``(K, *event_shape)``."""
    values = unmasked(function).enumerate_support(expand=False)
    return values.reshape(len(values), *function.event_shape)


def score_function(site: Site) -> Tensor:
    """The log-probability whose gradient is the score function: neither scaled nor masked by handlers."""
    return site["unscaled_log_prob"] if site["fn"].has_rsample else site["score_parts"].score_function


def detached_sample(function: TorchDistributionMixin) -> Tensor:
    """A sample without a gradient."""
    with torch.no_grad():
        return function.sample()


def _why_not(estimator: str, function: TorchDistributionMixin, particles: int) -> str:
    """The reason why an estimator does not apply to a distribution; "" if it does."""
    kind = univariate(function)
    name = type(kind).__name__
    if estimator == "reparam" and not function.has_rsample:
        return f"{name} has no reparameterized samples"
    if estimator in SCORED and isinstance(kind, Delta):
        return "the density of a Delta has no score function"
    if estimator == "rloo" and particles < 2:
        return "it needs several vectorized particles per image, e.g. PerSite_ELBO(num_particles=2)"
    if estimator == "enum" and isinstance(unmasked(function), Independent):
        return "the values of independent components, which .to_event() makes an event, cannot be enumerated"
    if estimator == "enum" and not getattr(function, "has_enumerate_support", False):
        return f"{name} has no finite support that can be enumerated"
    if estimator == "mvd" and family_of(kind) is None:
        known = ", ".join(family.__name__ for family in FAMILIES)
        return f"measure-valued derivatives are implemented for {known}, not for {name}"
    return ""
