"""Generative models p(x, z) as Pyro modules, and the engine that trains them; their guides live in ``guides``."""

from pplmodels.air import AIR

__all__ = ["AIR"]
__version__ = "0.1.0"
