"""Distributions that are missing in torch and Pyro."""

from pplmodels.distributions.autoregressive_categorical import AutoregressiveCategorical
from pplmodels.distributions.discretized_logistic import DiscretizedLogisticMixture
from pplmodels.distributions.score_masked import Masked
from pplmodels.distributions.wrapped_normal import WrappedNormal

__all__ = ["AutoregressiveCategorical", "DiscretizedLogisticMixture", "Masked", "WrappedNormal"]
