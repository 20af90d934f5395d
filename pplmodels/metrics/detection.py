"""Whether a model draws the objects of scenes where they are: their bounding boxes against the true ones."""

import math
from functools import reduce
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pplmodels.boxes import INK, bounding_boxes, pairwise_iou

VISIBLE = 4  # smallest number of changed pixels of an object that is not dark
HIT = 0.5  # smallest IoU of an object that is found


def object_boxes(changes: Tensor) -> Tensor:
    """The bounding boxes of objects, ``(..., 4)`` in pixels, from their changes to the canvas ``(..., C, H, W)``.

    A box contains the pixels that the object changes by more than a tenth of full intensity in any channel
    (:data:`pplmodels.boxes.INK`). An object with fewer than :data:`VISIBLE` such pixels is *dark*: its box is NaN.
    """
    ink = reduce(torch.logical_or, (changes.abs() > INK / 255).unbind(-3))
    dark = ink.flatten(-2).sum(-1) < VISIBLE
    return bounding_boxes(ink).masked_fill(dark[..., None], math.nan)


def matched_iou(true: Tensor, drawn: Tensor) -> Tensor:
    """The IoU of each true box with the drawn box that it is matched with, ``(B, K)`` on the CPU, 0 without a match.

    ``true (B, K, 4)`` and ``drawn (B, T, 4)`` are boxes, with rows of NaN for objects that do not exist. A box is
    matched with at most one other box, such that the total IoU of the scene is maximal.
    """
    overlap = pairwise_iou(true, drawn).cpu()
    best, choice = overlap.max(-1)
    # If no two true boxes overlap most with the same drawn box, each gets that one, and no matching has a larger total.
    chosen = torch.nn.functional.one_hot(choice, overlap.shape[-1]) * (best > 0)[..., None]
    for scene in (chosen.sum(-2) > 1).any(-1).nonzero().flatten().tolist():
        rows, columns = linear_sum_assignment(overlap[scene].numpy(), maximize=True)
        best[scene] = 0
        best[scene, rows] = overlap[scene, rows, columns]
    return best


def scene_iou(true: Tensor, drawn: Tensor, z_pres: Tensor) -> Tensor:
    """The mean IoU of each scene, ``(B)`` on the CPU, in which an object that is missing or superfluous counts as 0.

    This is the total of :func:`matched_iou`, divided by the number of true or of inferred objects, whichever is larger.
    It is 1 for a scene that has no objects, true or inferred. Shapes are those of :func:`detection_metrics`.
    """
    number = torch.maximum(_exists(true).sum(-1), (z_pres > 0).sum(-1)).cpu()
    return torch.where(number > 0, matched_iou(true, _present(drawn, z_pres)).sum(-1) / number.clamp(min=1), 1.0)


def detection_metrics(
    drawn: Tensor, z_pres: Tensor, counts: Tensor | None = None, boxes: Tensor | None = None
) -> dict[str, Any]:
    """Metrics of the boxes ``drawn (B, T, 4)`` (:func:`object_boxes`) of the objects with ``z_pres (B, T)`` of 1.

    ``dark_objects`` is the fraction of inferred objects that are dark. With the true ``counts (B)`` there is
    ``count_accuracy_without_dark``, the fraction of scenes with the right number of other objects. With the true
    ``boxes (B, K, 4)``, whose unused rows are NaN, boxes are matched by :func:`matched_iou`, and there are

    - ``mean_iou``: the mean over all pairs of matched boxes that overlap;
    - ``f1_50``: 2 TP / (2 TP + FP + FN), where true positives are pairs of an IoU of at least 0.5;
    - ``all_parts_right``: the fraction of scenes in which all true and all inferred objects are in such pairs, and
      ``all_parts_right/<n>``, the same of the scenes with n true boxes.

    An inferred object that is dark is a false positive. Metrics without data are omitted.
    """
    present = z_pres > 0
    drawn = _present(drawn, z_pres)
    visible = _exists(drawn)
    metrics: dict[str, Any] = {}
    if present.any():
        metrics["dark_objects"] = 1 - float(visible.sum() / present.sum())
    if counts is not None:
        metrics["count_accuracy_without_dark"] = float((visible.sum(-1) == counts).double().mean())
    if boxes is None:
        return metrics
    iou = matched_iou(boxes, drawn)
    true, inferred, hits = (found.sum(-1).cpu() for found in (_exists(boxes), present, iou >= HIT))
    if (iou > 0).any():
        metrics["mean_iou"] = float(iou[iou > 0].double().mean())
    if (true + inferred).any():
        metrics["f1_50"] = float(2 * hits.sum() / (true + inferred).sum())  # TP + FN and TP + FP
    return metrics | shares_by_count("all_parts_right", (hits == true) & (hits == inferred), true)


def shares_by_count(name: str, right: Tensor, counts: Tensor) -> dict[str, float]:
    """The fraction of scenes that are ``right (B)``, and as ``name/<n>`` that of the scenes with a count ``(B)`` of n.

    >>> shares_by_count("accuracy", torch.tensor([True, False, True]), torch.tensor([2, 2, 0]))
    {'accuracy': 0.6666666666666666, 'accuracy/0': 1.0, 'accuracy/2': 0.5}
    """
    by_count = {f"{name}/{n}": float(right[counts == n].double().mean()) for n in counts.unique().tolist()}
    return {name: float(right.double().mean()), **by_count}


def _exists(boxes: Tensor) -> Tensor:
    return boxes.isfinite().all(-1)


def _present(drawn: Tensor, z_pres: Tensor) -> Tensor:
    """The boxes of the objects that are present; the others become NaN."""
    return drawn.masked_fill((z_pres == 0)[..., None], math.nan)
