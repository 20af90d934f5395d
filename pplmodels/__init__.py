"""Generative models p(x, z) as Pyro modules, and the engine that trains them. Guides are in the package ``guides``."""

from pplmodels.models.air import AIR
from pplmodels.models.air3d import AIR3D
from pplmodels.models.draw import DRAW
from pplmodels.models.ladder_vae import LadderVAE
from pplmodels.models.pixelcnn import GatedPixelCNN, PixelCNN
from pplmodels.models.sigmoid_belief_net import SigmoidBeliefNet
from pplmodels.models.vae import MLPVAE, VAE, ConvVAE, VectorVAE
from pplmodels.models.vq_vae import VQVAE
from pplmodels.registry import load_pair

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
    "SigmoidBeliefNet",
    "VectorVAE",
    "load_pair",
]
__version__ = "0.1.0"
