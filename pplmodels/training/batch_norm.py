"""Recompute the statistics of batch normalization before evaluation."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pplmodels.metrics.bounds import stateful_log_probs


def recompute_batch_norm(model: nn.Module, guide: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the batch normalization statistics of a pair to their mean over ``batches``.

    After training they are running means over the last batches, computed with weights that were still changing. Nothing
    is run for a pair without batch normalization.
    """
    update_bn(batches, _Run(model, guide))


class _Run(nn.Module):
    """A module whose call runs the guide and the model once."""

    def __init__(self, model: nn.Module, guide: nn.Module):
        super().__init__()
        self.model, self.guide = model, guide

    def forward(self, x: Tensor) -> None:
        stateful_log_probs(self.model, self.guide, x)
