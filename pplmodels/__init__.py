"""Generative models p(x, z) as Pyro modules, and the engine that trains them; their guides live in ``guides``."""

from pplmodels.air import AIR
from pplmodels.draw import DRAW
from pplmodels.ladder_vae import LadderVAE
from pplmodels.vae import MLPVAE, VAE, ConvVAE, PlaneVAE

__all__ = ["AIR", "DRAW", "MLPVAE", "VAE", "ConvVAE", "LadderVAE", "PlaneVAE"]
__version__ = "0.1.0"
