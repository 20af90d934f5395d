"""Batch normalisation's statistics, for a pair that is to be evaluated."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pplmodels.metrics.bounds import one_run


def recompute_batch_norm(model: nn.Module, guide: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the statistics with which a pair normalises in evaluation mode to their mean over ``batches``.

    Training leaves a running mean of the last batches, met by weights that were still moving. Nothing is run where
    nothing normalises.
    """
    update_bn(batches, _Run(model, guide))


class _Run(nn.Module):
    """One run of guide and model, as a module's call."""

    def __init__(self, model: nn.Module, guide: nn.Module):
        super().__init__()
        self.model, self.guide = model, guide

    def forward(self, x: Tensor) -> None:
        one_run(self.model, self.guide, x)
