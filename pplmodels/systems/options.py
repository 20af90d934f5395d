"""The options that all systems have."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from pplmodels.machine import available_memory, resolve_device
from pplmodels.training.options import (
    NonnegativeInt,
    Option,
    OptionModel,
    PositiveFloat,
    PositiveInt,
    Seed,
    Switch,
)

DATA = Option(
    "digits (built in), mnist, cifar10, svhn, binarised-mnist, an .npz or .npy file, or a folder of images",
    "data",
    "NAME|FILE|FOLDER",
)
DATA_DIR = Option("folder of torchvision's datasets", "data", "DIR", scope="process")
BACKGROUND = Option("background of transparent images (CSS color)", "data", "COLOR", scope="data")
IMAGE_SIZE = Option("resize images and center-crop to NxN (default: unchanged)", "data", "N", scope="data")
WHITE_LEVEL = Option(
    "pixel value of full intensity (default: 255 for 8-bit, 65535 for 16-bit and 1 for float images)",
    "data",
    "VALUE",
    scope="data",
)
DATA_MEMORY = Option(
    "memory for images; larger datasets are read from disk in batches (default: half of the free memory)",
    "data",
    "GIB",
    scope="process",
)
WORKERS = Option("number of data-loading processes (default: 1 to 4)", "data", "N", scope="process")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}

Device = Annotated[Literal["auto", "cpu", "cuda"], Option("auto uses CUDA if available", "training", scope="process")]
Seeded = Annotated[Seed, Option("random seed", "training")]
# Fields whose defaults differ between systems
Steps = Annotated[PositiveInt, Option("gradient steps", "training")]
BatchSize = Annotated[PositiveInt, Option("images per step", "training")]
LearningRate = Annotated[PositiveFloat, Option("learning rate of Adam", "training")]


def by_data(defaults: dict[str, int], otherwise: int) -> Any:
    """A field whose default depends on the dataset."""
    return Field(default_factory=lambda given: defaults.get(given.get("data", ""), otherwise))


class TrainingOptions(OptionModel):
    """The options of every training."""

    data: Annotated[str, DATA] = "digits"
    steps: Steps = 6000
    schedule_steps: Annotated[
        PositiveInt, Option("length of all schedules except the learning rate's (default: --steps)", "training", "N")
    ] = Field(default_factory=lambda given: given.get("steps", 1))
    batch_size: BatchSize = 128
    lr: LearningRate = 1e-3
    seed: Seeded = 0
    device: Device = "auto"
    compile: Annotated[
        Switch, Option("compile the training step: faster, with the same results", "training", scope="process")
    ] = True
    fuse: Annotated[
        Switch,
        Option(
            "in long trainings on a CPU, compile the step in the background: faster, with the same results up to "
            "rounding",
            "training",
            scope="process",
        ),
    ] = True
    precision: Annotated[
        Literal["float32", "bfloat16"], Option("autocast dtype in training; evaluation is float32", "training")
    ] = "float32"
    imports: Annotated[
        str | None,
        Option(
            "Python file with a subclass of this pair's model or guide, which replaces the original (without FILE.py: "
            "the file that the run was trained with)",
            "training",
            "FILE.py",
            scope="process",
            flag="--import",
            const=True,
        ),
    ] = None
    out: Annotated[
        str | None, Option("run folder (default: runs/<system>-<data>/<time>)", "output", "DIR", scope="process")
    ] = None
    resume: Annotated[
        Switch, Option("continue the run in --out, or the newest run in that folder", "output", scope="process")
    ] = False
    extend: Annotated[
        str | None,
        Option(
            "continue training from the last state of RUN, in a new run with more --steps",
            "output",
            "RUN",
            scope="process",
        ),
    ] = None
    init_from: Annotated[str | None, Option("initialize with the weights of RUN", "output", "RUN", scope="process")] = (
        None
    )
    eval_every: Annotated[
        PositiveInt, Option("steps between evaluations (default: steps / 10)", "output", scope="once")
    ] = Field(default_factory=lambda given: max(1, given.get("steps", 1) // 10))

    def torch_device(self) -> torch.device:
        """The device selected by ``--device``. Raises :class:`pplmodels.errors.InputError`."""
        return resolve_device(self.device)

    def svi_settings(self) -> dict[str, Any]:
        """The arguments of :class:`pplmodels.infer.SVI` that are given by these options."""
        return {"compile": self.compile and "auto", "precision": PRECISIONS[self.precision]}


class ImageFileOptions(TrainingOptions):
    """The options of systems that read image files (:func:`pplmodels.data.load_images`)."""

    data_dir: Annotated[str, DATA_DIR] = "data"
    background: Annotated[str, BACKGROUND] = "white"
    image_size: Annotated[PositiveInt | None, IMAGE_SIZE] = None
    white_level: Annotated[PositiveFloat | None, WHITE_LEVEL] = None
    data_memory: Annotated[PositiveFloat | None, DATA_MEMORY] = None
    workers: Annotated[NonnegativeInt | None, WORKERS] = None

    def loading(self) -> dict[str, Any]:
        """The arguments of :func:`pplmodels.data.load_images` that are given by these options."""
        memory = available_memory() / 2 if self.data_memory is None else self.data_memory * 2**30
        device = self.torch_device()
        if device.type == "cuda" and self.data_memory is None:
            memory = min(memory, torch.cuda.mem_get_info(device)[0] / 2)
        return {
            "background": self.background,
            "image_size": self.image_size,
            "white_level": self.white_level,
            "workers": self.workers,
            "memory": int(memory),
        }
