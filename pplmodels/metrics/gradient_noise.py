"""The noise of the gradient estimates of a pair."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial

import torch
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pplmodels.infer.compile.state import Snapshot, State
from pplmodels.infer.svi import SVI


def gradient_variance(svi: SVI, args: tuple, parameters: Sequence[Tensor], repeats: int = 16) -> float:
    """:func:`gradient_variances` of a single group of parameters."""
    return gradient_variances(svi, args, {"": parameters}, repeats)[""]


def gradient_variances(
    svi: SVI, args: tuple, groups: Mapping[str, Sequence[Tensor]], repeats: int = 16
) -> dict[str, float]:
    """The total variance of the gradient of each group of parameters, in (nats per image per unit)^2.

    It is estimated from ``repeats`` estimates. Weights and batch are fixed and only the guide's samples differ, so this
    is the noise of the estimator and not of the data. The pair, its buffers, the objective's state and the random
    generators are restored. The estimates are those used by :meth:`SVI.step`, before clipping. The variance is NaN if
    the loss does not depend on any parameter of the group.
    """
    moments = _Moments()
    for images, gradients in _estimates(svi, args, repeats):
        moments.add({i: gradient / images for i, gradient in enumerate(gradients) if gradient is not None})
    variances = {id(svi.parameters()[i]): variance for i, variance in moments.variances().items()}
    found = {name: [variances[id(p)] for p in group if id(p) in variances] for name, group in groups.items()}
    return {name: sum(parts) if parts else math.nan for name, parts in found.items()}


def site_gradient_variances(svi: SVI, args: tuple, repeats: int = 16) -> dict[str, float]:
    """The total variance of the gradient with respect to the parameters of each distribution of the guide.

    These are the tensors that the site's distribution was constructed with, such as the mean and the standard deviation
    of a normal distribution, for each image. The gradient of an image's loss is in nats per unit; its variance is
    summed over the entries of these tensors and averaged over the images. Sites whose distributions do not depend on
    parameters of the pair are omitted. Otherwise as :func:`gradient_variances`. ``svi`` must not be compiled, because a
    replayed graph has no distributions.
    """
    gradients, moments = _SiteGradients(), _Moments()
    for images, _ in _estimates(svi, args, repeats, gradients):
        moments.add({key: gradient / images**0.5 for key, gradient in gradients.taken().items()})
    totals: dict[str, float] = {}
    for (site, _), variance in moments.variances().items():
        totals[site] = totals.get(site, 0.0) + variance
    return totals


def _estimates(
    svi: SVI, args: tuple, repeats: int, handler: Messenger | None = None
) -> Iterator[tuple[int, tuple[Tensor | None, ...]]]:
    """The number of images and the gradients of each estimate, with a handler around the guide.

    The state and the random generators are restored at the end.
    """
    guide = svi.guide
    state = State({"model": svi.model, "guide": guide, "loss": svi.elbo, "parameters": svi.parameters()})
    before = Snapshot.of(state)
    svi.guide = guide if handler is None else handler(guide)
    try:
        for _ in range(repeats):
            _, images, gradients = svi.gradients(*args)
            yield images, gradients
    finally:
        svi.guide = guide
        state.restore_bindings()
        before.restore()


class _Moments:
    """The mean and the sum of squared deviations of tensors, updated one sample at a time (Welford 1962)."""

    def __init__(self) -> None:
        self.number = 0
        self.means: dict[Hashable, Tensor] = {}
        self.squares: dict[Hashable, Tensor] = {}

    def add(self, sample: Mapping) -> None:
        """Add one value of each tensor."""
        self.number += 1
        for key, value in sample.items():
            mean = self.means.setdefault(key, torch.zeros_like(value))
            difference = value - mean
            mean += difference / self.number
            self.squares[key] = self.squares.get(key, 0.0) + difference * (value - mean)

    def variances(self) -> dict:
        """The variance of each tensor, summed over its entries."""
        return {key: float(s.sum(dtype=torch.float64)) / (self.number - 1) for key, s in self.squares.items()}


class _SiteGradients(Messenger):
    """Records the gradients with respect to the tensors of the distributions of all sites inside."""

    def __init__(self) -> None:
        super().__init__()
        self._gradients: dict[tuple[str, int], Tensor | None] = {}  # in the order of the sites
        self._hooks: list = []

    def _pyro_sample(self, msg) -> None:
        if site_is_subsample(msg):
            return
        for index, tensor in enumerate(_tensors(msg["fn"])):
            key = msg["name"], index
            self._gradients[key] = None
            self._hooks.append(tensor.register_hook(partial(self._gradients.__setitem__, key)))

    def taken(self) -> dict[tuple[str, int], Tensor]:
        """The gradients since the last call, by the site's name and the tensor's number."""
        for hook in self._hooks:
            hook.remove()
        found, self._gradients, self._hooks = self._gradients, {}, []
        return {key: gradient for key, gradient in found.items() if gradient is not None}


def _tensors(distribution: Distribution) -> list[Tensor]:
    """The differentiable tensors of a distribution, or of the distributions that it is composed of."""
    values = vars(distribution).values()
    tensors = [detach_provenance(value) for value in values if isinstance(value, Tensor)]
    own = {id(tensor): tensor for tensor in tensors if tensor.requires_grad}  # some have two names
    if own:
        return list(own.values())
    return [tensor for value in values if isinstance(value, Distribution) for tensor in _tensors(value)]
