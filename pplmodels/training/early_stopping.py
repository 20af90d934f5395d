"""Early stopping by the validation bound."""

import math
from collections.abc import Iterable
from pathlib import Path

from pplmodels.training.checkpoint import load_weights, save_weights
from pplmodels.training.state import TrainState


class EarlyStopping:
    """Ends a training after ``patience`` evaluations without a higher "valid_elbo", and keeps the best weights.

    With ``patience`` None, training never ends early and no weights are kept.

    Arguments:
        patience: the number of evaluations, or None.
        folder: the run's folder, which holds the best weights.
        history: the metrics of the evaluations so far.
    """

    def __init__(self, patience: int | None, folder: Path, history: Iterable[dict]):
        self._patience, self._folder = patience, folder
        self._bounds = [_bound(metrics) for metrics in history]

    @property
    def is_due(self) -> bool:
        """Whether the patience is exhausted."""
        return self._patience is not None and self._since_best() >= self._patience

    def observe(self, metrics: dict, state: TrainState) -> None:
        """Count an evaluation, and save the weights if it is the best so far."""
        self._bounds.append(_bound(metrics))
        if self._patience is not None and self._since_best() == 0:
            save_weights(self._folder, state)

    def restore_best(self, state: TrainState) -> None:
        """Load the weights of the best evaluation."""
        if self._patience is not None:
            load_weights(self._folder, state)

    def _since_best(self) -> int:
        """The number of evaluations since the best one."""
        return len(self._bounds) - 1 - self._bounds.index(max(self._bounds)) if self._bounds else 0


def _bound(metrics: dict) -> float:
    return metrics.get("valid_elbo", -math.inf)
