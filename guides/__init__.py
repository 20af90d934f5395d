"""Approximate posteriors q(z | x); each file carries the name of its model's file in ``pplmodels``."""

from guides.air import AIRGuide, DAIRGuide
from guides.baselines import NeuralBaseline

__all__ = ["AIRGuide", "DAIRGuide", "NeuralBaseline"]
