"""Generative models p(x, z) as Pyro modules, and the engine that trains them; their guides live in ``guides``."""

from pplmodels.air import AIR
from pplmodels.vae import MLPVAE, VAE, ConvVAE, PlaneVAE

__all__ = ["AIR", "MLPVAE", "VAE", "ConvVAE", "PlaneVAE"]
__version__ = "0.1.0"
