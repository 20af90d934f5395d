"""Generative models p(x, z) as Pyro modules, and the engine that trains them; their guides live in ``guides``."""

from pplmodels.air import AIR
from pplmodels.air3d import AIR3D
from pplmodels.draw import DRAW
from pplmodels.ladder_vae import LadderVAE
from pplmodels.pixelcnn import GatedPixelCNN, PixelCNN
from pplmodels.vae import MLPVAE, VAE, ConvVAE, PlaneVAE
from pplmodels.vq_vae import VQVAE

__all__ = [
    "AIR",
    "AIR3D",
    "DRAW",
    "MLPVAE",
    "VAE",
    "VQVAE",
    "ConvVAE",
    "GatedPixelCNN",
    "LadderVAE",
    "PixelCNN",
    "PlaneVAE",
]
__version__ = "0.1.0"
