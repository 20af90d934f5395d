"""Approximate posteriors q(z | x); each file carries the name of its model's file in ``pplmodels``."""

from guides.air import AIRGuide, DAIRGuide
from guides.air3d import AIR3DGuide
from guides.baselines import NeuralBaseline
from guides.draw import DRAWGuide
from guides.ladder_vae import LadderGuide
from guides.pixelcnn import EmptyGuide
from guides.vae import ConvGuide, LSTMGuide, MLPGuide, PlaneGuide, VAEGuide
from guides.vq_vae import VQGuide

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
    "NeuralBaseline",
    "PlaneGuide",
    "VAEGuide",
    "VQGuide",
]
