"""Approximate posteriors q(z | x). File names are those of the models in ``pplmodels.models``."""

from .air import AIRGuide, DAIRGuide
from .air3d import AIR3DGuide
from .draw import DRAWGuide
from .ladder_vae import LadderGuide
from .pixelcnn import EmptyGuide
from .sigmoid_belief_net import SigmoidBeliefGuide
from .vae import ConvGuide, LSTMGuide, MLPGuide, VAEGuide, VectorGuide
from .vq_vae import VQGuide

__all__ = [
    "AIR3DGuide",
    "AIRGuide",
    "ConvGuide",
    "DAIRGuide",
    "DRAWGuide",
    "EmptyGuide",
    "LSTMGuide",
    "LadderGuide",
    "MLPGuide",
    "SigmoidBeliefGuide",
    "VectorGuide",
    "VAEGuide",
    "VQGuide",
]
