"""Evaluation of a trained pair on held-out images, optionally with tighter bounds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from torch import Tensor
from tqdm import tqdm

from pplmodels import distributed
from pplmodels.data import Images
from pplmodels.data.transforms import TRANSFORMS
from pplmodels.errors import InputError
from pplmodels.io import PAIR, atomic_write, newest_run, write_json
from pplmodels.machine import peak_bytes, resolve_device
from pplmodels.metrics import compiled_log_probs, importance_weighted
from pplmodels.metrics import log_probs as pair_log_probs
from pplmodels.metrics.bounds import IWBound
from pplmodels.registry import load_pair
from pplmodels.rng import seed_all
from pplmodels.systems.command_line import stored_options
from pplmodels.systems.images import ImageOptions, ImageSystem, image_metrics, level_bits, load_transformed
from pplmodels.systems.lookup import find_system
from pplmodels.systems.options import (
    BACKGROUND,
    DATA,
    DATA_DIR,
    DATA_MEMORY,
    IMAGE_SIZE,
    WHITE_LEVEL,
    WORKERS,
    Device,
    Seeded,
    TrainingOptions,
)
from pplmodels.systems.pictures import image_pictures
from pplmodels.systems.system import Data, LogProbFunction, System
from pplmodels.training import Run, imports
from pplmodels.training.options import (
    NonnegativeInt,
    Option,
    OptionModel,
    PositiveFloat,
    PositiveInt,
    parser_of,
)

TOGETHER = 100  # batch size of the importance-weighted bound
# Options of the training that an evaluation may override
OVERRIDES = ("data", "data_dir", "background", "image_size", "white_level", "data_memory", "workers")


class EvaluationOptions(OptionModel):
    """The options of an evaluation. By default the data are those of the training."""

    run: Annotated[
        str,
        Option(
            "folder of a run, of several runs (uses the newest), or of a saved model and guide", metavar="RUN", flag=""
        ),
    ]
    imports: Annotated[
        str | Literal[True] | None,
        Option(
            "Python file that defines the classes of the pair (without FILE.py: the file used in training)",
            metavar="FILE.py",
            flag="--import",
            const=True,
        ),
    ] = None
    data: Annotated[str | None, DATA] = None
    data_dir: Annotated[str | None, DATA_DIR] = None
    background: Annotated[str | None, BACKGROUND] = None
    image_size: Annotated[PositiveInt | None, IMAGE_SIZE] = None
    white_level: Annotated[PositiveFloat | None, WHITE_LEVEL] = None
    data_memory: Annotated[PositiveFloat | None, DATA_MEMORY] = None
    workers: Annotated[NonnegativeInt | None, WORKERS] = None
    transform: Annotated[
        str | None, Option("pixel transform of systems that model images", "data", choices=tuple(TRANSFORMS))
    ] = None
    device: Device = "auto"
    seed: Seeded = 0
    iw_samples: Annotated[PositiveInt | None, Option("samples per image", "importance-weighted bound", "K")] = None
    iw_images: Annotated[
        PositiveInt | None, Option("use only the first N images", "importance-weighted bound", "N")
    ] = None
    iw_chunk: Annotated[
        PositiveInt,
        Option(
            f"samples drawn at once for {TOGETHER} images; determines the memory use",
            "importance-weighted bound",
            "S",
        ),
    ] = 50
    gradient_samples: Annotated[
        PositiveInt | None,
        Option("estimate the gradient variance of each estimator from R samples", "AIR", "R"),
    ] = None
    paths: Annotated[PositiveInt, Option("samples per scene for the count posterior", "AIR")] = 1

    def overriding(self) -> dict[str, Any]:
        """The options of the training that this evaluation overrides."""
        given = {name: getattr(self, name) for name in OVERRIDES if getattr(self, name) is not None}
        return {**given, "device": self.device}


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated: the system that trained a run and the run's options, with the data of the evaluation.

    For a pair without a run, ``system`` is None and the data are images.
    """

    system: System | None
    options: TrainingOptions
    data: Data

    @classmethod
    def of(cls, run: Run, asked: EvaluationOptions) -> "Evaluated":
        """Load what ``run`` was trained on, or what the evaluation asks for. Raises :class:`InputError`."""
        if "system" not in run.config:
            if asked.data is None or asked.transform is None:
                raise InputError(f"the data of {run.folder} are unknown: give --data and --transform.")
            options = ImageOptions.of(asked.overriding())
            return cls(None, options, load_transformed(options, asked.transform))
        system = system_of(run)
        options = system.options_class.of({**stored_options(system, run).plain(), **asked.overriding()})
        if asked.transform is None:
            data = system.load(options)
        elif isinstance(system, ImageSystem):
            data = load_transformed(options, asked.transform)
        else:
            raise InputError(f"--transform does not apply to {system.name}, which does not model images.")
        system.check_data(options, data, run)
        return cls(system, options, data)

    def metrics(self, log_probs: LogProbFunction, model: Any, guide: Any) -> dict[str, Any]:
        """The held-out metrics."""
        if self.system is None:
            return image_metrics(log_probs, model, guide, self.data.test)
        return self.system.held_out_metrics(log_probs, model, guide, self.data)

    def further(self, model: Any, guide: Any, asked: EvaluationOptions) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Further metrics, and arrays with one row per held-out image (:meth:`System.further`)."""
        if self.system is None:
            return {}, {}
        size = self.options.batch_size
        return self.system.further(model, guide, self.data, size, asked.paths, asked.gradient_samples)

    def weighted_metrics(self, images: Images, bound: IWBound) -> dict[str, Any]:
        """Further metrics of the importance-weighted bound (:meth:`System.weighted_metrics`)."""
        return {} if self.system is None else self.system.weighted_metrics(images, bound)

    def plot(self, model: Any, guide: Any, run: Run) -> None:
        """Write the plots into the folder of the run."""
        if self.system is None:
            image_pictures(model, guide, self.data.test, run.metrics, run.folder)
        else:
            self.system.plot(model, guide, self.data, run)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate the pair of a run as the words of the command line say, and print the metrics."""
    parser = parser_of(EvaluationOptions, "Evaluate a trained pair on held-out images, optionally with tighter bounds.")
    print(evaluate(EvaluationOptions.of(vars(parser.parse_args(argv)))))


def evaluate(options: EvaluationOptions) -> str:
    """Evaluate a pair, write evaluation.json, evaluation.npz and plots into its folder; returns the report."""
    if distributed.world_size() > 1:
        raise InputError("a run must be evaluated by a single process: start this script without torchrun.")
    device = resolve_device(options.device)
    folder = newest_run(options.run, PAIR)
    run = Run.open(folder) if (folder / "config.json").exists() else Run(folder, {})
    imports.run_import(options.imports, run)
    model, guide = (module.to(device) for module in load_pair(run.folder))
    evaluated = Evaluated.of(run, options)
    try_out(model, guide, evaluated.data.test, run.folder)
    metrics, arrays = measure(evaluated, model, guide, options)
    write_json(run.folder / "evaluation.json", metrics)
    rows = {name: array.cpu().numpy() for name, array in arrays.items()}
    atomic_write(run.folder / "evaluation.npz", lambda path: _savez(path, rows))
    evaluated.plot(model, guide, run)
    closing = f"wrote figures and evaluation.npz, with one row per image, to {run.folder}"
    return f"{json.dumps(metrics, indent=2)}\n{closing}"


def measure(
    evaluated: Evaluated, model: Any, guide: Any, options: EvaluationOptions
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metrics of a pair, and arrays with one row per held-out image."""
    log_probs = compiled_log_probs(model, guide, fallback=True)
    seed_all(options.seed)
    metrics = {"data": evaluated.options.data, **evaluated.metrics(log_probs, model, guide)}
    further, arrays = evaluated.further(model, guide, options)
    metrics |= further
    if options.iw_samples:
        images = evaluated.data.test.head(options.iw_images or len(evaluated.data.test))
        bound = weighted(model, guide, images, options.iw_samples, options.iw_chunk)
        arrays |= {"iw_bound": bound.bound, "effective_sample_size": bound.ess}
        metrics |= {"iw_samples": options.iw_samples, "iw_images": len(images)}
        metrics |= {name: float(array.mean()) for name, array in arrays.items() if array.dim() == 1}
        metrics |= evaluated.weighted_metrics(images, bound)
        metrics["peak_bytes"] = peak_bytes(images.pixels.device)
        metrics["iw_bound_standard_error"] = float(bound.bound.std() / len(images) ** 0.5)
        if "bits_per_dim" in metrics:
            metrics["iw_bits_per_dim"] = level_bits(images, metrics["iw_bound"])
    return metrics, arrays


def system_of(run: Run) -> System:
    """The system that trained a run. Raises :class:`InputError`."""
    name = run.config.get("system")
    if not isinstance(name, str):
        raise InputError(f"the config.json of {run.folder} has no system.")
    return find_system(name)


def try_out(model: Any, guide: Any, images: Images, folder: Path) -> None:
    """Reject a pair that does not fit the images, before anything is measured."""
    try:
        pair_log_probs(model, guide, images.head(2)[:])
    except Exception as error:  # the folder is untrusted, so the pair can have any sizes
        raise InputError(f"the pair in {folder} cannot be applied to the images ({error}).") from error


def weighted(model: Any, guide: Any, images: Images, num_samples: int, chunk: int = 50) -> IWBound:
    """The importance-weighted bound of each image, ``chunk`` samples at a time."""
    bound = compiled_log_probs(model, guide, samples=min(chunk, num_samples), fallback=True)
    batches = tqdm(images.batches(TOGETHER), total=-(-len(images) // TOGETHER), unit=f"{TOGETHER} images")
    return importance_weighted(bound, batches, num_samples)


def _savez(path: Path, arrays: dict[str, Any]) -> None:
    """Write ``arrays``. Their type is Any because np.savez also has a keyword argument that is not an array."""
    with open(path, "wb") as file:  # np.savez would append .npz to a path
        np.savez(file, **arrays)
