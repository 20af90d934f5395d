"""Inspecting a pair by tracing, replaying and conditioning its model and guide. Results are arrays, e.g. for plotting.

Inspection never changes a pair, not even in training mode: parameters, batch statistics, running means of a codebook
and all other state are restored (:func:`pplmodels.infer.looking.unchanged`).
"""

from pplmodels.infer.traces import steps
from pplmodels.inspect.air import (
    InferredScenes,
    count_metrics,
    count_objects,
    count_posterior,
    decided_counts,
    drawn_boxes,
    infer_scenes,
    sample_scenes,
)
from pplmodels.inspect.air3d import (
    Solids,
    find_solids,
    log_joint,
    refine_solids,
    render_solids,
    sample_yaws,
    sampled_solids,
    search_solids,
    solid_metrics,
    true_solids,
    yaw_errors,
)
from pplmodels.inspect.checks import Graph, check_pair, graph, site_table
from pplmodels.inspect.diagnostics import Calibration, calibration, gradient_noise, weight_diagnostics
from pplmodels.inspect.draw import CanvasSteps, generation_steps, reconstruction_steps
from pplmodels.inspect.images import (
    infer_codes,
    interpolate,
    manifold,
    mean_image,
    prior_and_aggregate_posterior,
    reconstruct,
    resample,
    sample,
    sample_means,
    traverse,
)
from pplmodels.inspect.posteriors import posterior, predictive, prior

__all__ = [
    "Calibration",
    "Graph",
    "CanvasSteps",
    "InferredScenes",
    "Solids",
    "mean_image",
    "calibration",
    "check_pair",
    "prior_and_aggregate_posterior",
    "count_metrics",
    "count_objects",
    "count_posterior",
    "decided_counts",
    "drawn_boxes",
    "find_solids",
    "gradient_noise",
    "graph",
    "infer_codes",
    "interpolate",
    "log_joint",
    "manifold",
    "posterior",
    "predictive",
    "prior",
    "reconstruct",
    "resample",
    "sample_means",
    "sample_scenes",
    "refine_solids",
    "render_solids",
    "sample_yaws",
    "sampled_solids",
    "sample",
    "search_solids",
    "site_table",
    "solid_metrics",
    "steps",
    "traverse",
    "true_solids",
    "weight_diagnostics",
    "infer_scenes",
    "generation_steps",
    "reconstruction_steps",
    "yaw_errors",
]
