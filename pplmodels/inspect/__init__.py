"""Looking at what a pair believes: its own programs, traced, replayed and conditioned; arrays, for plotting to draw.

Looking never changes a pair, in training mode neither: parameters, batch statistics, running means of a codebook and
whatever else its programs write are put back (:func:`pplmodels.infer.looking.unchanged`).
"""

from pplmodels.infer.traces import steps
from pplmodels.inspect.images import (
    centre,
    code_clouds,
    infer_codes,
    interpolate,
    manifold,
    reconstruct,
    redraw,
    sample_images,
    samples,
    traverse,
)
from pplmodels.inspect.labelled import posterior, predictive, prior
from pplmodels.inspect.painting import Painting, watch, watch_reconstruction
from pplmodels.inspect.pairs import Graph, check_pair, graph, site_table
from pplmodels.inspect.scenes import (
    SceneView,
    count_metrics,
    count_objects,
    count_posterior,
    decided_counts,
    sample_scenes,
    view_scenes,
)
from pplmodels.inspect.tables import (
    Solids,
    find_solids,
    log_joint,
    refine_solids,
    render_solids,
    sample_yaws,
    search_solids,
    solid_metrics,
    true_solids,
    yaw_errors,
)

__all__ = [
    "Graph",
    "Painting",
    "SceneView",
    "Solids",
    "centre",
    "check_pair",
    "code_clouds",
    "count_metrics",
    "count_objects",
    "count_posterior",
    "decided_counts",
    "find_solids",
    "graph",
    "infer_codes",
    "interpolate",
    "log_joint",
    "manifold",
    "posterior",
    "predictive",
    "prior",
    "reconstruct",
    "redraw",
    "sample_images",
    "sample_scenes",
    "refine_solids",
    "render_solids",
    "sample_yaws",
    "samples",
    "search_solids",
    "site_table",
    "solid_metrics",
    "steps",
    "traverse",
    "true_solids",
    "view_scenes",
    "watch",
    "watch_reconstruction",
    "yaw_errors",
]
