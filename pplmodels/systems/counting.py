"""Metrics of pairs that count the objects of scenes."""

from typing import Any

import torch
from torch import Tensor

from pplmodels import distributed, inspect
from pplmodels.data import Images
from pplmodels.metrics import elbo_terms
from pplmodels.systems.system import LogProbFunction, shard_batches

UNANIMOUS = 0.95  # fraction of scenes with the same extreme count that is reported as a collapse


def scene_metrics(log_probs: LogProbFunction, guide, scenes: Images) -> dict[str, Any]:
    """The ELBO split by site, the inferred counts and, if the true counts are known, the count accuracy.

    ``log_probs`` is :func:`pplmodels.metrics.log_probs` of the pair, compiled or not. ``count_accuracy``,
    ``confusion`` and ``inferred_counts`` (fractions of the scenes) are computed from one posterior sample per scene,
    ``count_accuracy_argmax`` from the most probable count. ``decided_counts`` are the fractions of scenes with
    n = 0..T likely steps. ``warning`` is present if almost all scenes get no object, or if almost all scenes with an
    object get T.
    """
    terms, inferred = elbo_terms(log_probs, shard_batches(scenes), inspect.count_objects)
    posterior = distributed.all_gather(torch.cat([inspect.count_posterior(guide, x) for x in shard_batches(scenes)]))
    counts = posterior.shape[1]
    decided = inspect.decided_counts(posterior).bincount(minlength=counts) / len(posterior)
    metrics: dict[str, Any] = {
        **terms,
        "inferred_counts": (inferred.bincount(minlength=counts) / len(inferred)).tolist(),
        "decided_counts": decided.tolist(),
    }
    if warning := _collapse(decided):
        metrics["warning"] = warning
    if scenes.counts is not None:
        metrics |= inspect.count_metrics(scenes.counts, inferred, counts - 1)
        metrics["count_accuracy_argmax"] = float((posterior.argmax(1) == scenes.counts).double().mean())
    return metrics


def _collapse(decided: Tensor) -> str | None:
    """A warning if the fractions of scenes with n = 0..T objects indicate a collapse."""
    none, every = float(decided[0]), float(decided[-1] / (1 - decided[0]))
    if none > UNANIMOUS:
        return f"collapse: the guide infers no object in {none:.0%} of the scenes."
    if len(decided) > 2 and every > UNANIMOUS:
        return (
            f"collapse: the guide infers all {len(decided) - 1} objects in {every:.0%} of the scenes with any object."
        )
    return None
