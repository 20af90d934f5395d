"""Train a VAE, a ladder VAE, DRAW, and DRAW with attention under one protocol, and write a report comparing them."""

import argparse
import json
from pathlib import Path

import evaluate
import torch
import train_draw
import train_ladder_vae
import train_vae
import vaes

from pplmodels import inspect, plotting
from pplmodels.data import ImageSet
from pplmodels.errors import InputError
from pplmodels.io import PAIR, atomic_write, newest_run, write_json
from pplmodels.metrics import compiled_log_probs, elbo_terms
from pplmodels.module import PairModule, count_parameters
from pplmodels.registry import load_pair
from pplmodels.report import last_slope, save_picture
from pplmodels.rng import seed_all
from pplmodels.training import Run, cli
from pplmodels.training.run import commit, describe_device, versions

SYSTEMS = {
    "vae": (train_vae, ()),
    "ladder-vae": (train_ladder_vae, ()),
    "draw": (train_draw, ("--no-attention",)),
    "draw-attention": (train_draw, ("--attention", "--read-window", "5")),
}
PARTS = {"train": "train", "validation": "valid", "test": "test"}
TERMS = ("elbo", "kl", "reconstruction")
SHOWN = 10  # number of images and of samples per system in the figures

Pair = tuple[PairModule, PairModule]


def parser() -> cli.Parser:
    """The options of the training protocol and of the report."""
    parser = cli.Parser(description=__doc__)
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--data", default="digits", metavar="NAME|FILE.npz|FOLDER", help=cli.DATASET_HELP)
    protocol.add_argument("--data-dir", default="data", metavar="DIR", help="folder of torchvision's datasets")
    vaes.add_binarise(protocol)
    protocol.add_argument("--steps", type=cli.positive_int, default=2000, help="gradient steps")
    protocol.add_argument("--batch-size", type=cli.positive_int, default=128, help="images per step")
    protocol.add_argument("--lr", type=cli.positive_float, default=1e-3, help="learning rate of Adam")
    protocol.add_argument(
        "--valid",
        type=cli.positive_int,
        help="number of validation images, if the data have none (default: a tenth of the training images)",
    )
    protocol.add_argument("--seed", type=cli.seed, default=0, help="random seed")
    protocol.add_argument("--num-steps", type=cli.positive_int, default=10, metavar="T", help="number of DRAW steps")
    protocol.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto uses CUDA if available"
    )
    report = parser.add_argument_group("report")
    report.add_argument("--runs", nargs="+", type=Path, metavar="RUN", help="report on these runs without training")
    report.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the report and of the runs, which are resumed"
    )
    report.add_argument(
        "--iw-samples",
        type=cli.positive_int,
        default=100,
        metavar="K",
        help="samples of the importance-weighted bound on the test images",
    )
    report.add_argument(
        "--iw-images", type=cli.positive_int, metavar="N", help="compute that bound on the first N test images only"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train the systems that are not trained yet, measure all of them and write the report."""
    options = parser().parse_args(argv)
    if options.runs:
        folders = {folder.name: newest_run(folder, PAIR) for folder in options.runs}
    else:
        folders = {name: train(name, options) for name in SYSTEMS}
    runs = {name: Run.open(folder) for name, folder in folders.items()}
    images = shared_images(runs, options.device)
    device = images.test.pixels.device
    pairs = {name: tuple(half.to(device) for half in load_pair(run.folder)) for name, run in runs.items()}
    rows = {name: measure(pairs[name], run, images, options) for name, run in runs.items()}
    draw(options.out, pairs, runs, images)
    print(write(options.out, rows, runs, options, device))


def train(name: str, options: argparse.Namespace) -> Path:
    """The folder of a system's finished run, which is trained or resumed if necessary."""
    script, arguments = SYSTEMS[name]
    folder = options.out / name
    names = ["data", "data_dir", "binarise", "steps", "batch_size", "lr", "valid", "seed", "device"]
    for option in [*names, "num_steps"] if script is train_draw else names:
        if (value := getattr(options, option)) is not None:
            arguments = [*arguments, "--" + option.replace("_", "-"), str(value)]
    arguments = [*arguments, "--out", str(folder)]
    if (folder / "config.json").exists():
        arguments.append("--resume")
    if (folder / "result.json").exists():
        _, run = cli.parse(script.parser(), arguments)  # raises if the run was trained under another protocol
        run.close()
    else:
        script.main(arguments)
    return folder


def shared_images(runs: dict[str, Run], device: str) -> ImageSet:
    """The images that all runs were trained on."""
    wanted = argparse.Namespace(data=None, data_dir=None, reading=None, device=device)
    trained = {name: evaluate.as_trained(wanted, run) for name, run in runs.items()}
    (first, options), *others = trained.items()
    for name, other in others:
        for option in ("data", "reading", "valid"):
            mine, theirs = getattr(options, option), getattr(other, option)
            if mine != theirs:
                raise InputError(f"{first} has {option} {mine}, {name} {theirs}: they cannot be compared.")
    return vaes.load(options, runs[first])


def measure(pair: Pair, run: Run, images: ImageSet, options: argparse.Namespace) -> dict:
    """The system's row of the table."""
    seed_all(options.seed)
    bound = compiled_log_probs(*pair, fallback=True)
    row = {}
    for label, part in PARTS.items():
        terms, _ = elbo_terms(bound, getattr(images, part).batches())
        row |= {f"{label}/{term}": terms[term] for term in TERMS}
    test = images.test.head(options.iw_images or len(images.test))
    row["iw_bound"] = float(evaluate.weighted(*pair, test, options.iw_samples, chunk=50).bound.mean())
    result = json.loads((run.folder / "result.json").read_text())
    seen = run.metrics[-1]["step"] * run.config["batch_size"]
    return row | {
        "parameters": count_parameters(*pair),
        "seconds": result["seconds"],
        "images_per_second": seen / result["seconds"],
        "last_slope": last_slope(run.metrics),
    }


def draw(folder: Path, pairs: dict[str, Pair], runs: dict[str, Run], images: ImageSet) -> None:
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


def write(
    folder: Path, rows: dict[str, dict], runs: dict[str, Run], options: argparse.Namespace, device: torch.device
) -> Path:
    """Write report.json, and report.md with the table and the figures."""
    first = next(iter(runs.values())).config
    tested = f"{options.iw_images} test images" if options.iw_images else "all test images"
    described = {
        "data": first["data"],
        "reading": first["reading"],
        "iw_samples": options.iw_samples,
        "iw_images": options.iw_images,
        "device": describe_device(device),
        "versions": versions(),
        "commit": commit(),
        "commands": {name: run.config["command"] for name, run in runs.items()},
        "rows": rows,
    }
    write_json(folder / "report.json", described)
    names = [f"{part}/{term}" for part in PARTS for term in TERMS]
    head = ["system", *(name.replace("/", " ") for name in names), f"IW-{options.iw_samples}"]
    head += ["last slope", "parameters", "seconds", "images/s"]
    lines = [head, ["---"] * len(head)]
    for system, row in rows.items():
        bounds = [f"{row[name]:.2f}" for name in (*names, "iw_bound")]
        slope = "" if row["last_slope"] is None else f"{row['last_slope']:.2f}"
        figures = [slope, f"{row['parameters']:,}"]
        figures += [f"{row[name]:.0f}" for name in ("seconds", "images_per_second")]
        lines.append([system, *bounds, *figures])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(described["commands"].values()))
    text = f"""# {", ".join(rows)}

On {first["data"]}, {first["reading"]}; nats per image, each part of the data whole; importance-weighted bounds of
{tested} with {options.iw_samples} samples each; last slope: what the validation bound still gained per 1,000 steps
at the end. Measured on {described["device"]}, torch {torch.__version__}, commit {described["commit"]}.

{table}

The bound on the validation images while training:

![curves](curves.png)

Test images, and what each system makes of them:

![reconstructions](reconstructions.png)

Samples from each prior:

![samples](samples.png)

The runs' commands:

{commands}
"""
    atomic_write(folder / "report.md", lambda path: path.write_text(text, "utf-8", "backslashreplace"))
    return folder / "report.md"


if __name__ == "__main__":
    cli.run_script(main)
