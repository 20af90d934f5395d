"""DRAW, which generates an image step by step, on binary or color images."""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from pplmodels import DRAW, inspect, plotting
from pplmodels.data import Images, ValidatedImageSet
from pplmodels.io import atomic_write
from pplmodels.systems import ImageSystem, LatentImageOptions, Pair
from pplmodels.systems.images import Binarise
from pplmodels.systems.options import LearningRate, Steps, by_data
from pplmodels.systems.pictures import save_picture
from pplmodels.training import Run
from pplmodels.training.options import NonnegativeInt, Option, PositiveInt, Switch

from ..draw import DRAWGuide


def _warm_up(given: dict[str, Any]) -> int:
    """Half of the steps on the built-in digits, because small datasets collapse earlier."""
    if given.get("data") == "digits":
        return given.get("steps", 2) // 2
    return min(2000, given.get("schedule_steps", 1) // 10)


class DRAWOptions(LatentImageOptions):
    """The options of DRAW."""

    steps: Steps = by_data({"digits": 2000}, 20_000)
    lr: LearningRate = 1.5e-3
    warm_up: Annotated[
        NonnegativeInt,
        Option(
            "steps until the KL weight reaches 1 (default: a tenth of the steps, at most 2000; half for digits)",
            "KL annealing",
            "N",
        ),
    ] = Field(default_factory=_warm_up)
    z_dim: Annotated[PositiveInt, Option("number of latent dimensions per step", "model")] = 100
    num_steps: Annotated[PositiveInt, Option("number of DRAW steps (64; digits 8)", "model", "T")] = by_data(
        {"digits": 8}, 64
    )
    hidden: Annotated[PositiveInt, Option("state size of both LSTMs", "model")] = 256
    attention: Annotated[
        Switch, Option("read and write through attention windows instead of on the whole canvas", "model")
    ] = True
    read_window: Annotated[PositiveInt, Option("size of the read window", "model", "N")] = 2
    write_window: Annotated[PositiveInt, Option("size of the write window", "model", "N")] = 5
    likelihood: Annotated[
        Literal["bernoulli", "logit-normal", "logit-normal-learned"],
        Option("p(x | z) of a pixel: Bernoulli, or normal in logit space", "model"),
    ] = "bernoulli"
    binarise: Binarise = "dynamic"


class DRAWSystem(ImageSystem[DRAWOptions]):
    """Trains :class:`pplmodels.DRAW` with :class:`guides.DRAWGuide`."""

    name = "draw"
    description = "Train DRAW, which generates an image step by step, on binary or color images."
    options_class = DRAWOptions

    def transform(self, options: DRAWOptions) -> str:
        """The binarization that the options select, or dequantization for normal pixels."""
        return options.binarise if options.likelihood == "bernoulli" else "dequantised"

    def classes(self, options: DRAWOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return DRAW, DRAWGuide

    def build(self, options: DRAWOptions, data: ValidatedImageSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair, whose canvas starts at the mean intensity of the training images."""
        ink = min(max(data.train.mean(), 0.01), 0.99)
        model = model_class(
            data.train.shape,
            options.num_steps,
            options.z_dim,
            options.hidden,
            options.write_window if options.attention else None,
            options.likelihood,
            canvas_start=math.log(ink / (1 - ink)),
        )
        return model, guide_class(model, options.hidden, options.read_window if options.attention else None)

    def plot(self, model: Any, guide: Any, data: ValidatedImageSet, run: Run) -> None:
        """The plots of all image systems, and the canvas after each step."""
        super().plot(model, guide, data, run)
        canvas_pictures(model, guide, data.test, run.folder)


def canvas_pictures(model, guide, images: Images, folder: Path) -> None:
    """Write painting.png and painting.gif, the steps of reconstructions, and dreaming.gif, the steps of samples."""
    x = images.part(torch.linspace(0, len(images) - 1, 8).long())[:]  # datasets may be sorted by class
    again, dreamt = inspect.reconstruction_steps(model, guide, x), inspect.generation_steps(model, len(x))
    for name, painting in (("painting", again), ("dreaming", dreamt)):
        canvases, reading, writing = _arrays(painting)
        write = partial(plotting.canvas_gif, canvases=canvases, reading=reading, writing=writing)
        atomic_write(folder / f"{name}.gif", write)
    canvases, reading, writing = _arrays(again)
    shown = np.unique(np.linspace(0, len(canvases) - 2, 10).round().astype(int))
    windows = (None if where is None else where[shown] for where in (reading, writing))
    save_picture(plotting.painting_rows(x.cpu().numpy(), canvases[1:][shown], *windows), folder / "painting.png")


def _arrays(painting: inspect.CanvasSteps) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The canvases, and the windows in which they are read and written."""
    windows = painting.reading, painting.writing
    reading, writing = (None if where is None else where.cpu().numpy() for where in windows)
    return painting.canvases.clamp(0, 1).cpu().numpy(), reading, writing


SYSTEM = DRAWSystem()
