"""Metrics of any model/guide pair: bounds on log p(x), latent usage, and noise of gradient estimates."""

from pplmodels.metrics.bounds import bits_per_dim, compiled_log_probs, elbo_terms, importance_weighted, log_probs
from pplmodels.metrics.gradient_noise import gradient_variance, gradient_variances, site_gradient_variances
from pplmodels.metrics.latents import (
    active_units,
    codebook_counts,
    codebook_usage,
    elbo_surgery,
    posterior_mean_variances,
)

__all__ = [
    "active_units",
    "bits_per_dim",
    "codebook_counts",
    "codebook_usage",
    "compiled_log_probs",
    "elbo_surgery",
    "elbo_terms",
    "gradient_variance",
    "gradient_variances",
    "importance_weighted",
    "log_probs",
    "posterior_mean_variances",
    "site_gradient_variances",
]
