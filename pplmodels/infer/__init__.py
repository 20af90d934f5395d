"""Stochastic variational inference for any model/guide pair. This package does not import any model."""

from pplmodels.infer.compile.tracing import CompileError
from pplmodels.infer.elbos.baseline import NeuralBaseline, ScoreNormalizer
from pplmodels.infer.elbos.free_bits import FreeBits_ELBO
from pplmodels.infer.elbos.importance_weighted import ImportanceWeighted_ELBO
from pplmodels.infer.elbos.per_site import PerSite_ELBO
from pplmodels.infer.elbos.protocol import Objective
from pplmodels.infer.elbos.wake_sleep import ReweightedWakeSleep_ELBO
from pplmodels.infer.handlers import ScaledKL
from pplmodels.infer.optim import adam, learning_rates
from pplmodels.infer.schedules import Annealed, cosine, cyclical, delayed, linear, schedules_end
from pplmodels.infer.svi import SVI
from pplmodels.infer.traces import local_params

__all__ = [
    "PerSite_ELBO",
    "SVI",
    "Annealed",
    "CompileError",
    "FreeBits_ELBO",
    "ImportanceWeighted_ELBO",
    "NeuralBaseline",
    "Objective",
    "ReweightedWakeSleep_ELBO",
    "ScaledKL",
    "ScoreNormalizer",
    "adam",
    "cosine",
    "cyclical",
    "delayed",
    "learning_rates",
    "linear",
    "local_params",
    "schedules_end",
]
