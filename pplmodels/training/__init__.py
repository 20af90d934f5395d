"""The training loop, its run folder and its command line; nothing here imports a model."""

from pplmodels.training.loop import fit, warn_if_short
from pplmodels.training.restarts import best_start
from pplmodels.training.run import Run

__all__ = ["Run", "best_start", "fit", "warn_if_short"]
