"""Distributions that torch and Pyro lack."""

from pplmodels.distributions.autoregressive import AutoregressiveCategorical
from pplmodels.distributions.discretized import DiscretizedLogisticMixture
from pplmodels.distributions.masked import Masked
from pplmodels.distributions.turn import Turn

__all__ = ["AutoregressiveCategorical", "DiscretizedLogisticMixture", "Masked", "Turn"]
