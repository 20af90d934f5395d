"""The training loop, its run folder and its command line; nothing here imports a model."""

from pplmodels.training.loop import fit
from pplmodels.training.restarts import best_start
from pplmodels.training.run import Run

__all__ = ["Run", "best_start", "fit"]
