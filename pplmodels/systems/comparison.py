"""A comparison of systems that model images, trained under one protocol."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from pplmodels import inspect, plotting
from pplmodels.data import ValidatedImageSet
from pplmodels.errors import InputError
from pplmodels.io import PAIR, atomic_write, newest_run, write_json
from pplmodels.metrics import compiled_log_probs, elbo_terms
from pplmodels.module import count_parameters
from pplmodels.registry import load_pair
from pplmodels.rng import seed_all
from pplmodels.systems.command_line import resume, stored_options
from pplmodels.systems.evaluation import system_of, weighted
from pplmodels.systems.images import Binarise, ImageSystem
from pplmodels.systems.lookup import find_system
from pplmodels.systems.options import DATA, DATA_DIR, BatchSize, Device, LearningRate, Seeded, Steps
from pplmodels.systems.pictures import save_picture
from pplmodels.systems.system import Pair, System
from pplmodels.systems.validated import ValidationImages
from pplmodels.training import Run
from pplmodels.training.options import Option, OptionModel, PositiveInt, parser_of
from pplmodels.training.run import commit, describe_device, last_slope, versions

PARTS = {"train": "train", "validation": "valid", "test": "test"}
TERMS = ("elbo", "kl", "reconstruction")
SHOWN = 10  # number of images and of samples per system in the plots
REPORT = "report"  # the title of the options that are not about training


@dataclass(frozen=True)
class Variant:
    """A system and the options by which it differs from the protocol."""

    system: str
    options: dict[str, Any]


# DRAW is compared with and without attention; the name of any other system stands for the system itself.
VARIANTS = {
    "draw": Variant("draw", {"attention": False}),
    "draw-attention": Variant("draw", {"attention": True, "read_window": 5}),
}


class ComparisonOptions(OptionModel):
    """The options of the training protocol and of the report."""

    data: Annotated[str, DATA] = "digits"
    data_dir: Annotated[str, DATA_DIR] = "data"
    binarise: Binarise = "dynamic"
    steps: Steps = 2000
    batch_size: BatchSize = 128
    lr: LearningRate = 1e-3
    valid: ValidationImages = None
    seed: Seeded = 0
    num_steps: Annotated[PositiveInt, Option("number of DRAW steps", "model", "T")] = 10
    device: Device = "auto"
    systems: Annotated[
        tuple[str, ...],
        Option("the systems to compare: those that model images, and draw-attention", REPORT, "NAME"),
    ] = ("vae", "ladder-vae", "draw", "draw-attention")
    runs: Annotated[tuple[str, ...] | None, Option("report on these runs without training", REPORT, "RUN")] = None
    out: Annotated[str, Option("folder of the report and of the runs, which are resumed", REPORT, "DIR")]
    iw_samples: Annotated[
        PositiveInt, Option("samples of the importance-weighted bound on the test images", REPORT, "K")
    ] = 100
    iw_images: Annotated[
        PositiveInt | None, Option("compute this bound on the first N test images only", REPORT, "N")
    ] = None

    def protocol(self) -> dict[str, Any]:
        """The options that all systems are trained with."""
        return {name: getattr(self, name) for name in type(self).model_fields if self.option(name).group != REPORT}


def main(argv: Sequence[str] | None = None) -> None:
    """Compare systems as the words of the command line say, and print the path of the report."""
    description = "Train systems that model images under one protocol, and write a report comparing them."
    print(compare(ComparisonOptions.of(vars(parser_of(ComparisonOptions, description).parse_args(argv)))))


def compare(options: ComparisonOptions) -> Path:
    """Train the systems that are not trained yet, measure all of them and write the report; returns its path."""
    out = Path(options.out)
    if options.runs:
        runs = {Path(folder).name: Run.open(newest_run(folder, PAIR)) for folder in options.runs}
    else:
        runs = {name: trained(name, options, out / name) for name in options.systems}
    images = shared_images(runs, options.device)
    device = images.test.pixels.device
    pairs: dict[str, Pair] = {}
    for name, run in runs.items():
        model, guide = load_pair(run.folder)
        pairs[name] = model.to(device), guide.to(device)
    rows = {name: measure(pairs[name], run, images, options) for name, run in runs.items()}
    draw(out, pairs, runs, images)
    return write(out, describe(rows, runs, options, device))


def trained(name: str, options: ComparisonOptions, folder: Path) -> Run:
    """A system's finished run, which is trained or resumed if necessary."""
    variant = VARIANTS.get(name, Variant(name, {}))
    system = image_system(name, find_system(variant.system))
    known = system.options_class.model_fields
    given = {option: value for option, value in options.protocol().items() if option in known and value is not None}
    given = {**given, **variant.options, "out": str(folder)}
    if not (folder / "config.json").exists():
        return system.train(system.options_class.of(given))
    continued, run = resume(system, given)  # raises if the run was trained under another protocol
    if (folder / "result.json").exists():
        run.close()
        return run
    return system.train(continued, run)


def image_system(name: str, system: System) -> ImageSystem:
    """``system``, if it models images. Otherwise raises :class:`InputError`, which calls it ``name``."""
    if not isinstance(system, ImageSystem):
        raise InputError(f"{name} cannot be compared, because it does not model images.")
    return system


def shared_images(runs: dict[str, Run], device: str) -> ValidatedImageSet:
    """The images that all runs were trained on. Raises :class:`InputError` if they differ."""
    trainings, loaders = {}, {}
    for name, run in runs.items():
        system = image_system(name, system_of(run))
        stored = stored_options(system, run).replaced(device=device)
        trainings[name] = {"data": stored.data, "transform": system.transform(stored), "valid": stored.valid}
        loaders[name] = system, stored
    (first, expected), *others = trainings.items()
    for name, training in others:
        for option, value in training.items():
            if value != expected[option]:
                raise InputError(f"{first} and {name} cannot be compared: {option} is {expected[option]} and {value}.")
    system, stored = loaders[first]
    images = system.load(stored)
    system.check_data(stored, images, runs[first])
    return images


def measure(pair: Pair, run: Run, images: ValidatedImageSet, options: ComparisonOptions) -> dict[str, Any]:
    """The system's row of the table."""
    seed_all(options.seed)
    log_probs = compiled_log_probs(*pair, fallback=True)
    row: dict[str, Any] = {}
    for label, part in PARTS.items():
        terms, _ = elbo_terms(log_probs, getattr(images, part).batches())
        row |= {f"{label}/{term}": terms[term] for term in TERMS}
    test = images.test.head(options.iw_images or len(images.test))
    row["iw_bound"] = float(weighted(*pair, test, options.iw_samples).bound.mean())
    result = json.loads((run.folder / "result.json").read_text())
    seen = run.metrics[-1]["step"] * run.config["batch_size"]
    return row | {
        "parameters": count_parameters(*pair),
        "seconds": result["seconds"],
        "images_per_second": seen / result["seconds"],
        "last_slope": last_slope(run.metrics),
    }


def draw(folder: Path, pairs: dict[str, Pair], runs: dict[str, Run], images: ValidatedImageSet) -> None:
    """Draw the curves of all systems in one figure, and their reconstructions and samples side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = {
        name: [[{**line, "images": line["step"] * run.config["batch_size"]} for line in run.metrics]]
        for name, run in runs.items()
    }
    save_picture(plotting.curves_by_run(curves, "valid_elbo", x="images"), folder / "curves.png")
    x = images.test.head(SHOWN)[:]
    again = [inspect.reconstruct(*pair, x) for pair in pairs.values()]
    dreamt = [inspect.sample_means(model, len(x)) for model, _ in pairs.values()]
    for name, rows, labels in (
        ("reconstructions", [x, *again], ["image", *pairs]),
        ("samples", dreamt, list(pairs)),
    ):
        figure = plotting.image_rows([row.clamp(0, 1).cpu().numpy() for row in rows], labels)
        save_picture(figure, folder / f"{name}.png")


def describe(
    rows: dict[str, dict[str, Any]], runs: dict[str, Run], options: ComparisonOptions, device: torch.device
) -> dict[str, Any]:
    """The content of report.json."""
    first = next(iter(runs))
    system = image_system(first, system_of(runs[first]))
    return {
        "data": runs[first].config["data"],
        "transform": system.transform(stored_options(system, runs[first])),
        "iw_samples": options.iw_samples,
        "iw_images": options.iw_images,
        "device": describe_device(device),
        "versions": versions(),
        "commit": commit(),
        "commands": {name: run.config["command"] for name, run in runs.items()},
        "rows": rows,
    }


def write(folder: Path, report: dict[str, Any]) -> Path:
    """Write report.json, and report.md with the table and the figures; returns the path of the latter."""
    write_json(folder / "report.json", report)
    text = as_markdown(report)
    atomic_write(folder / "report.md", lambda path: path.write_text(text, "utf-8", "backslashreplace"))
    return folder / "report.md"


def as_markdown(report: dict[str, Any]) -> str:
    """The content of report.md: the table of a report, its figures and the commands of its runs."""
    tested = f"{report['iw_images']} test images" if report["iw_images"] else "all test images"
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(report["commands"].values()))
    return f"""# {", ".join(report["rows"])}

Data: {report["data"]} ({report["transform"]}). Bounds are in nats per image, computed on all images of each part of the
data. Importance-weighted bounds use {report["iw_samples"]} samples per image on {tested}. The last slope is the
increase of the validation bound per 1,000 steps at the end of training. Measured on {report["device"]},
torch {report["versions"]["torch"]}, commit {report["commit"]}.

{table(report["rows"], report["iw_samples"])}

Validation bound during training:

![curves](curves.png)

Test images and their reconstructions:

![reconstructions](reconstructions.png)

Samples from each prior:

![samples](samples.png)

Commands of the runs:

{commands}
"""


def table(rows: dict[str, dict[str, Any]], iw_samples: int) -> str:
    """The rows as a Markdown table."""
    names = [f"{part}/{term}" for part in PARTS for term in TERMS]
    head = ["system", *(name.replace("/", " ") for name in names), f"IW-{iw_samples}"]
    head += ["last slope", "parameters", "seconds", "images/s"]
    lines = [head, ["---"] * len(head)]
    for system, row in rows.items():
        bounds = [f"{row[name]:.2f}" for name in (*names, "iw_bound")]
        slope = "" if row["last_slope"] is None else f"{row['last_slope']:.2f}"
        costs = [f"{row['parameters']:,}", *(f"{row[name]:.0f}" for name in ("seconds", "images_per_second"))]
        lines.append([system, *bounds, slope, *costs])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
