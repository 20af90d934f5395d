"""Distributions that torch and Pyro lack."""

from pplmodels.distributions.autoregressive import AutoregressiveCategorical
from pplmodels.distributions.discretized import DiscretizedLogisticMixture

__all__ = ["AutoregressiveCategorical", "DiscretizedLogisticMixture"]
