"""Comparison of the results of a replayed graph and of its program, up to rounding."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Outcome:
    """The results of a run, and the tensors and the states of the random generators after it."""

    results: list
    tensors: list[Tensor]
    generators: dict


def difference(
    program: Outcome,
    graph: Outcome,
    before: list[Tensor],
    name: Callable[[int], str],
    tolerance: float | None,
    amplified: float = 1.0,
) -> str:
    """The name of the first result, tensor or generator in which graph and program differ; "" if they agree.

    Results are compared by their values. The first result (the loss) is compared on its own scale, the others
    (gradients) also on the scale of the largest of them, because gradients below its rounding error are noise (e.g. of
    a bias before batch normalization). Tensors are compared by their changes since ``before``, so that slow changes
    are detected, too.

    Arguments:
        name: returns the name of a tensor from its index.
        tolerance: relative to the largest entry; None for 1e-9 in float64 and 1e-4 otherwise.
        amplified: factor of this tolerance.
    """

    def rounding(tensor: Tensor) -> float:
        return amplified * (tolerance or (1e-9 if tensor.dtype == torch.float64 else 1e-4))

    floating = [r for r in program.results[1:] if isinstance(r, Tensor) and r.is_floating_point()]
    largest = max(map(_largest, floating), default=0.0)
    for number, (expected, got) in enumerate(zip(program.results, graph.results, strict=True)):
        if not _close(got, expected, rounding, largest if number else 0.0):
            return f"result {number + 1}"
    for number, (expected, got) in enumerate(zip(program.tensors, graph.tensors, strict=True)):
        if not _changed_alike(got, expected, before[number], rounding):
            return name(number)
    if not _same_random(program.generators, graph.generators):
        return "the number of random numbers drawn"
    return ""


def _same_random(one: dict, other: dict) -> bool:
    same = zip([one["torch"], *one["cuda"]], [other["torch"], *other["cuda"]], strict=True)
    return all(torch.equal(a, b) for a, b in same)


def _largest(tensor: Tensor) -> float:
    """The largest finite absolute value."""
    finite = torch.nan_to_num(tensor.detach(), 0.0, 0.0, 0.0)
    return float(finite.abs().amax()) if tensor.numel() else 0.0


def _equal(got: Tensor, expected: Tensor) -> Tensor:
    return (got == expected) | (got.isnan() & expected.isnan())


def _close(got, expected, rounding: Callable[[Tensor], float], largest: float) -> bool:
    """Whether values are equal up to the rounding of reordered sums, relative to the largest entry.

    Differences below a hundredth of the rounding error of ``largest`` are ignored.
    """
    if not isinstance(expected, Tensor):
        return got == expected
    if got is None or got.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    allowed = rounding(expected) * max(_largest(expected), largest / 100)
    return bool((_equal(got, expected) | ((got - expected).abs() <= allowed)).all())


def _changed_alike(got: Tensor, expected: Tensor, before: Tensor, rounding: Callable[[Tensor], float]) -> bool:
    """Whether two tensors have changed equally since ``before``, up to rounding of the change and of the value."""
    if torch.equal(got, expected):
        return True
    if not expected.is_floating_point() or torch.equal(expected, before):
        return False
    representable = 4 * torch.finfo(expected.dtype).eps * expected.abs()
    allowed = rounding(expected) * _largest(expected - before) + representable
    return bool((_equal(got, expected) | ((got - expected).abs() <= allowed)).all())
