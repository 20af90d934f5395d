"""Metrics of any model/guide pair: bounds on log p(x), latent usage, noise of gradient estimates, and found objects."""

from pplmodels.metrics.bounds import bits_per_dim, compiled_log_probs, elbo_terms, importance_weighted, log_probs
from pplmodels.metrics.calibration import calibration_metrics
from pplmodels.metrics.detection import detection_metrics, matched_iou, object_boxes, scene_iou, shares_by_count
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
    "calibration_metrics",
    "codebook_counts",
    "codebook_usage",
    "compiled_log_probs",
    "detection_metrics",
    "elbo_surgery",
    "elbo_terms",
    "gradient_variance",
    "gradient_variances",
    "importance_weighted",
    "log_probs",
    "matched_iou",
    "object_boxes",
    "posterior_mean_variances",
    "scene_iou",
    "shares_by_count",
    "site_gradient_variances",
]
