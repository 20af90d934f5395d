"""Training and measuring any model/guide pair; nothing here imports a model."""

from pplmodels.infer.bounds import compiled_log_probs, elbo_terms, log_probs
from pplmodels.infer.elbo import NVIL_ELBO
from pplmodels.infer.optim import adam
from pplmodels.infer.replay import CannotCompile
from pplmodels.infer.schedules import Annealed, cosine, linear
from pplmodels.infer.svi import SVI

__all__ = [
    "NVIL_ELBO",
    "SVI",
    "Annealed",
    "CannotCompile",
    "adam",
    "compiled_log_probs",
    "cosine",
    "elbo_terms",
    "linear",
    "log_probs",
]
