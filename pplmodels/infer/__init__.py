"""Training and measuring any model/guide pair; nothing here imports a model."""

from pplmodels.infer.bounds import elbo_terms
from pplmodels.infer.elbo import NVIL_ELBO
from pplmodels.infer.optim import adam
from pplmodels.infer.schedules import Annealed, cosine, linear
from pplmodels.infer.svi import SVI

__all__ = ["NVIL_ELBO", "SVI", "Annealed", "adam", "cosine", "elbo_terms", "linear"]
