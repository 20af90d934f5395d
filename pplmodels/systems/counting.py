"""Metrics of pairs that count the objects of scenes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pplmodels import distributed, inspect
from pplmodels.data import Images
from pplmodels.metrics import calibration_metrics, detection_metrics, elbo_terms
from pplmodels.metrics.bounds import IWBound
from pplmodels.systems.system import LogProbFunction, shard_batches

UNANIMOUS = 0.95  # fraction of scenes with the same count that is reported as a collapse


def scene_metrics(log_probs: LogProbFunction, model, guide, scenes: Images) -> dict[str, Any]:
    """The ELBO split by site, the metrics of :func:`counting_metrics`, and those of the drawn objects.

    ``log_probs`` is :func:`pplmodels.metrics.log_probs` of the pair, compiled or not, and ``model`` has the method
    :meth:`pplmodels.AIR.scene_changes`. The same posterior sample per scene is used for the ELBO, the counts and the
    objects (:func:`pplmodels.metrics.detection_metrics`).
    """
    terms, objects = elbo_terms(log_probs, shard_batches(scenes), partial(_objects, model))
    z_pres, boxes = objects[..., 0], objects[..., 1:]
    counted = counting_metrics(guide, scenes, z_pres.sum(1).long())
    return terms | counted | detection_metrics(boxes, z_pres, scenes.counts, scenes.boxes)


def _objects(model, latents: Mapping[str, Tensor]) -> Tensor:
    """z_pres and the boxes of the objects, together ``(B, T, 5)``."""
    z_pres = torch.stack(inspect.steps(latents, "z_pres"), -1)
    return torch.cat([z_pres[..., None], inspect.drawn_boxes(model, latents)], -1)


def counting_metrics(guide, scenes: Images, inferred: Tensor) -> dict[str, Any]:
    """Metrics of the counts ``inferred (N)`` by one posterior sample per scene, and of q(n | x).

    ``inferred_counts`` are the fractions of scenes with each inferred count, ``decided_counts`` those with n = 0..T
    likely steps. ``warning`` is present if almost all scenes get the same count, which is not known to be right, or if
    almost all scenes with an object get T. If the true counts are known, there are ``count_accuracy``, also by true
    count, and ``confusion`` (:func:`pplmodels.inspect.count_metrics`), ``count_accuracy_argmax`` of the most probable
    count, and the calibration of q(n | x) (:func:`pplmodels.metrics.calibration_metrics`).
    """
    posterior = distributed.all_gather(torch.cat([inspect.count_posterior(guide, x) for x in shard_batches(scenes)]))
    counts = posterior.shape[1]
    decided = inspect.decided_counts(posterior).bincount(minlength=counts) / len(posterior)
    metrics: dict[str, Any] = {
        "inferred_counts": (inferred.bincount(minlength=counts) / len(inferred)).tolist(),
        "decided_counts": decided.tolist(),
    }
    if warning := _collapse(decided, scenes.counts):
        metrics["warning"] = warning
    if scenes.counts is not None:
        metrics |= inspect.count_metrics(scenes.counts, inferred, counts - 1)
        metrics["count_accuracy_argmax"] = float((posterior.argmax(1) == scenes.counts).double().mean())
        metrics |= calibration_metrics(posterior, scenes.counts)
    return metrics


def weighted_metrics(scenes: Images, bound: IWBound) -> dict[str, float]:
    """``effective_sample_size/with_objects`` of the importance-weighted bound: its mean without the empty scenes.

    In an empty scene, nearly all samples have no objects and the same weight, so such scenes raise the mean of all.
    """
    if scenes.counts is None or not (scenes.counts > 0).any():
        return {}
    return {"effective_sample_size/with_objects": float(bound.ess[scenes.counts > 0].mean())}


def _collapse(decided: Tensor, true: Tensor | None) -> str | None:
    """A warning if the fractions of scenes with n = 0..T objects indicate a collapse, in view of the true counts."""
    share, number = (float(part) for part in decided.max(0))
    known = 0.0 if true is None else float((true == number).double().mean())
    if share > UNANIMOUS > known:
        objects = {0: "no object", 1: "1 object"}.get(int(number), f"{number:.0f} objects")
        return f"collapse: the guide infers {objects} in {share:.0%} of the scenes."
    every = float(decided[-1] / (1 - decided[0]))
    if len(decided) > 2 and every > UNANIMOUS > known:
        return (
            f"collapse: the guide infers all {len(decided) - 1} objects in {every:.0%} of the scenes with any object."
        )
    return None
