"""The training loop, its run folder and its command line; nothing here imports a model."""

from pplmodels.training.loop import fit, warn_if_short
from pplmodels.training.multi_start import best_of_seeds
from pplmodels.training.run import Run

__all__ = ["Run", "best_of_seeds", "fit", "warn_if_short"]
