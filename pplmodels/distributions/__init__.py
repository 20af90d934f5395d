"""Distributions that neither torch nor Pyro has."""

from pplmodels.distributions.discretized import DiscretizedLogisticMixture

__all__ = ["DiscretizedLogisticMixture"]
