"""Training and measuring any model/guide pair; nothing here imports a model."""

from pplmodels.infer.bounds import compiled_log_probs, elbo_terms, importance_weighted, log_probs
from pplmodels.infer.diagnostics import gradient_variance
from pplmodels.infer.elbo import NVIL_ELBO, SummedOut_ELBO
from pplmodels.infer.optim import adam, learning_rates
from pplmodels.infer.replay import CannotCompile
from pplmodels.infer.schedules import Annealed, cosine, linear
from pplmodels.infer.svi import SVI

__all__ = [
    "NVIL_ELBO",
    "SVI",
    "Annealed",
    "CannotCompile",
    "SummedOut_ELBO",
    "adam",
    "compiled_log_probs",
    "cosine",
    "elbo_terms",
    "gradient_variance",
    "importance_weighted",
    "learning_rates",
    "linear",
    "log_probs",
]
