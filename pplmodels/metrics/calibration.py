"""Whether a posterior over counts is right as often as it claims to be (Guo et al. 2017, arXiv 1706.04599)."""

from typing import Any

import torch
from torch import Tensor

BINS = 10  # bins of equal width between confidences of 0 and 1


def calibration_metrics(posterior: Tensor, counts: Tensor) -> dict[str, Any]:
    """The reliability table of q(n | x) ``(B, N)`` with the true ``counts (B)``, and its calibration error.

    The confidence of a scene is max_n q(n | x); it is right if that n is the true count. Bin m = 1..10 has the scenes
    with a confidence in ((m - 1) / 10, m / 10]. ``reliability/share`` is the fraction of scenes in each bin,
    ``reliability/confidence`` their mean confidence and ``reliability/accuracy`` the fraction of them that are right;
    the latter two are None for bins without scenes. ``expected_calibration_error`` is the mean over scenes of the
    difference between accuracy and confidence of their bin (section 2, equation 3).
    """
    confidence, choice = posterior.cpu().double().max(-1)
    edges = torch.arange(1, BINS, dtype=torch.float64, device="cpu") / BINS
    bins = torch.bucketize(confidence, edges)  # edges belong to the bin below
    number = bins.bincount(minlength=BINS)
    hits = (choice == counts.cpu()).double()
    claimed, right = (bins.bincount(of_scenes, BINS) for of_scenes in (confidence, hits))  # totals of each bin
    return {
        "expected_calibration_error": float((claimed - right).abs().sum() / len(bins)),
        "reliability/share": (number / len(bins)).tolist(),
        "reliability/confidence": _means(claimed, number),
        "reliability/accuracy": _means(right, number),
    }


def _means(totals: Tensor, numbers: Tensor) -> list[float | None]:
    return [float(total / number) if number else None for total, number in zip(totals, numbers, strict=True)]
