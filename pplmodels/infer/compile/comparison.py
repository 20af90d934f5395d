"""Whether a replayed graph did what the program does, up to rounding."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Outcome:
    """What a run returned, the tensors it left behind, and the states of the random generators after it."""

    results: list
    tensors: list[Tensor]
    generators: dict


def difference(
    program: Outcome,
    graph: Outcome,
    before: list[Tensor],
    name: Callable[[int], str],
    tolerance: float | None,
) -> str:
    """The name of the first thing that the graph gets wrong; "" if there is none.

    Results are compared by their values, the first (a loss) by itself and the others (gradients) with the largest of
    them as their scale: below its rounding a gradient is noise, such as that of a bias before batch normalisation.
    Tensors that a run leaves behind are compared by their changes since ``before``, so that a slow one counts as much.

    Arguments:
        name: of a tensor that was left behind, by its index.
        tolerance: relative to the largest entry; None for 1e-9 in float64 and 1e-4 otherwise.
    """
    floating = [r for r in program.results[1:] if isinstance(r, Tensor) and r.is_floating_point()]
    largest = max(map(_largest, floating), default=0.0)
    for number, (expected, got) in enumerate(zip(program.results, graph.results, strict=True)):
        if not _close(got, expected, tolerance, largest if number else 0.0):
            return f"result {number + 1}"
    for number, (expected, got) in enumerate(zip(program.tensors, graph.tensors, strict=True)):
        if not _changed_alike(got, expected, before[number], tolerance):
            return name(number)
    if not _same_random(program.generators, graph.generators):
        return "how many random numbers it draws"
    return ""


def _same_random(one: dict, other: dict) -> bool:
    same = zip([one["torch"], *one["cuda"]], [other["torch"], *other["cuda"]], strict=True)
    return all(torch.equal(a, b) for a, b in same)


def _rounding(tensor: Tensor, tolerance: float | None) -> float:
    return tolerance or (1e-9 if tensor.dtype == torch.float64 else 1e-4)


def _largest(tensor: Tensor) -> float:
    """The largest finite absolute value."""
    finite = torch.nan_to_num(tensor.detach(), 0.0, 0.0, 0.0)
    return float(finite.abs().amax()) if tensor.numel() else 0.0


def _equal(got: Tensor, expected: Tensor) -> Tensor:
    return (got == expected) | (got.isnan() & expected.isnan())


def _close(got, expected, tolerance: float | None, largest: float) -> bool:
    """Equal up to the rounding of sums taken in another order, relative to the largest entry.

    What is smaller than a hundredth of the rounding of ``largest`` counts as equal.
    """
    if not isinstance(expected, Tensor):
        return got == expected
    if got is None or got.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    allowed = _rounding(expected, tolerance) * max(_largest(expected), largest / 100)
    return bool((_equal(got, expected) | ((got - expected).abs() <= allowed)).all())


def _changed_alike(got: Tensor, expected: Tensor, before: Tensor, tolerance: float | None) -> bool:
    """Whether two values are the same change of a third, up to rounding of the change and of the value."""
    if torch.equal(got, expected):
        return True
    if not expected.is_floating_point() or torch.equal(expected, before):
        return False
    rounding = 4 * torch.finfo(expected.dtype).eps * expected.abs()
    allowed = _rounding(expected, tolerance) * _largest(expected - before) + rounding
    return bool((_equal(got, expected) | ((got - expected).abs() <= allowed)).all())
