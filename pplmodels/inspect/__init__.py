"""Looking at what a pair believes: its own programs, traced, replayed and conditioned; arrays, for plotting to draw."""

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

__all__ = [
    "Graph",
    "Painting",
    "SceneView",
    "centre",
    "check_pair",
    "code_clouds",
    "count_metrics",
    "count_objects",
    "count_posterior",
    "decided_counts",
    "graph",
    "infer_codes",
    "interpolate",
    "manifold",
    "posterior",
    "predictive",
    "prior",
    "reconstruct",
    "redraw",
    "sample_images",
    "sample_scenes",
    "samples",
    "site_table",
    "steps",
    "traverse",
    "view_scenes",
    "watch",
    "watch_reconstruction",
]
