"""Systems: how a pair is trained, measured, plotted and rebuilt. Those of this project are in ``guides.systems``."""

from pplmodels.systems.images import ImageOptions, ImageSystem, LatentImageOptions
from pplmodels.systems.lookup import all_systems, find_system, train
from pplmodels.systems.options import ImageFileOptions, TrainingOptions
from pplmodels.systems.system import Data, LogProbFunction, Pair, System, Trained
from pplmodels.systems.validated import AnnealingOptions, ParticleOptions, ScheduleOptions, ValidatedSystem
from pplmodels.training.cli import run_script

__all__ = [
    "AnnealingOptions",
    "Data",
    "ImageFileOptions",
    "ImageOptions",
    "ImageSystem",
    "LatentImageOptions",
    "LogProbFunction",
    "Pair",
    "ParticleOptions",
    "ScheduleOptions",
    "System",
    "Trained",
    "TrainingOptions",
    "ValidatedSystem",
    "all_systems",
    "find_system",
    "run_script",
    "train",
]
