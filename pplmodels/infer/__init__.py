"""Training and measuring any model/guide pair; nothing here imports a model."""

from pplmodels.infer.bounds import bits_per_dim, compiled_log_probs, elbo_terms, importance_weighted, log_probs
from pplmodels.infer.codes import active_units, code_counts, code_variances, information, usage
from pplmodels.infer.diagnostics import gradient_variance
from pplmodels.infer.elbo import NVIL_ELBO, FreeBits_ELBO, SummedOut_ELBO
from pplmodels.infer.handlers import ScaledKL
from pplmodels.infer.normalisation import settle_batch_norm
from pplmodels.infer.optim import adam, learning_rates
from pplmodels.infer.parameters import module_owned_parameters
from pplmodels.infer.schedules import Annealed, cosine, cyclical, delayed, linear, schedules_end
from pplmodels.infer.svi import SVI
from pplmodels.infer.tracing import CannotCompile

__all__ = [
    "NVIL_ELBO",
    "SVI",
    "Annealed",
    "CannotCompile",
    "FreeBits_ELBO",
    "ScaledKL",
    "SummedOut_ELBO",
    "active_units",
    "adam",
    "bits_per_dim",
    "code_counts",
    "code_variances",
    "compiled_log_probs",
    "cosine",
    "cyclical",
    "delayed",
    "elbo_terms",
    "gradient_variance",
    "importance_weighted",
    "information",
    "learning_rates",
    "linear",
    "log_probs",
    "module_owned_parameters",
    "schedules_end",
    "settle_batch_norm",
    "usage",
]
