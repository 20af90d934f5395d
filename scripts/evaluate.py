"""Load a trained pair from its run folder and evaluate it on held-out images, optionally with tighter bounds."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import train_air
import train_air3d
import train_draw
import train_pixelcnn
import train_vae_2d
import train_vqvae
import vaes
from pyro.infer import TraceGraph_ELBO
from torch import Tensor
from tqdm import tqdm

from pplmodels import AIR, distributed, inspect
from pplmodels.data import Images
from pplmodels.data.transforms import TRANSFORMS
from pplmodels.errors import InputError
from pplmodels.infer import SVI, SummedOut_ELBO, adam
from pplmodels.io import PAIR, atomic_write, newest_run, write_json
from pplmodels.metrics import compiled_log_probs, gradient_variance, importance_weighted, log_probs
from pplmodels.metrics.bounds import Weighted
from pplmodels.registry import load_pair
from pplmodels.report import level_bits
from pplmodels.rng import seed_all
from pplmodels.training import Run, cli, imports

TOGETHER = 100  # batch size of the importance-weighted bound
IMAGES = (vaes.image_parser, vaes.load, vaes.measure, vaes.draw)
KINDS = {  # by the run's script; all other scripts use IMAGES
    "air": (train_air.parser, train_air.load, train_air.measure, train_air.draw),
    "air3d": (train_air3d.parser, train_air3d.load, train_air3d.measure, train_air3d.draw),
    "draw": (vaes.image_parser, vaes.load, vaes.measure, train_draw.draw),
    "pixelcnn": (train_pixelcnn.parser, train_pixelcnn.load, train_pixelcnn.measure, train_pixelcnn.draw),
    "vae-2d": (train_vae_2d.parser, train_vae_2d.load, vaes.measure, train_vae_2d.draw),
    "vq-vae": (vaes.image_parser, vaes.load, train_vqvae.measure, train_vqvae.draw),
}


def parser() -> cli.Parser:
    """The script's options."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        "run", metavar="RUN", help="folder of a run, of several runs (uses the newest), or of a saved model and guide"
    )
    imports.add_import(parser, "it defines the classes of the pair")
    source = parser.add_argument_group("data", "The default is the data of the training.")
    source.add_argument("--data", metavar="NAME|FILE|FOLDER", help="evaluate on other data")
    cli.add_image_options(source)
    source.add_argument("--reading", choices=TRANSFORMS, help="pixel transform")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto uses CUDA if available")
    parser.add_argument("--seed", type=cli.seed, default=0, help="random seed")
    bound = parser.add_argument_group("importance-weighted bound")
    bound.add_argument("--iw-samples", type=cli.positive_int, metavar="K", help="samples per image")
    bound.add_argument("--iw-images", type=cli.positive_int, metavar="N", help="use only the first N images")
    bound.add_argument(
        "--iw-chunk",
        type=cli.positive_int,
        default=50,
        metavar="S",
        help=f"samples drawn at once for {TOGETHER} images; determines the memory use",
    )
    air = parser.add_argument_group("AIR")
    air.add_argument(
        "--gradient-samples",
        type=cli.positive_int,
        metavar="R",
        help="estimate the gradient variance of each estimator from R samples",
    )
    air.add_argument("--paths", type=cli.positive_int, default=1, help="samples per scene for the count posterior")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the options, load the pair, evaluate it and print the metrics."""
    options = parser().parse_args(argv)
    if distributed.world_size() > 1:
        raise InputError("a run is evaluated by one process: start this script without torchrun.")
    device = cli.resolve_device(options.device)
    folder = newest_run(options.run, PAIR)
    run = Run.open(folder) if (folder / "config.json").exists() else Run(folder, {})
    imports.run_import(options, run)
    model, guide = (half.to(device) for half in load_pair(run.folder))
    trained = as_trained(options, run)
    _, load, measure, draw = kind_of(run)
    data = load(trained, run)
    try_out(model, guide, data.test, run.folder)
    bound = compiled_log_probs(model, guide, fallback=True)
    seed_all(options.seed)
    metrics, arrays = {"data": trained.data, **measure(bound, model, guide, data)}, {}
    if isinstance(model, AIR):
        batches = data.test.batches()
        arrays["count_posterior"] = torch.cat([inspect.count_posterior(guide, x, options.paths) for x in batches])
        if options.gradient_samples:
            metrics |= gradient_variances(model, guide, data.test.head(trained.batch_size)[:], options.gradient_samples)
    if options.iw_samples:
        images = data.test.head(options.iw_images or len(data.test))
        found = weighted(model, guide, images, options.iw_samples, options.iw_chunk)
        arrays |= {"iw_bound": found.bound, "effective_sample_size": found.sample_size}
        metrics |= {"iw_samples": options.iw_samples, "iw_images": len(images)}
        metrics |= {name: float(array.mean()) for name, array in arrays.items() if array.dim() == 1}
        metrics["peak_bytes"] = cli.peak_bytes(device)
        metrics["iw_bound_standard_error"] = float(found.bound.std() / len(images) ** 0.5)
        if "bits_per_dim" in metrics:
            metrics["iw_bits_per_dim"] = level_bits(images, metrics["iw_bound"])
    arrays = {name: array.cpu().numpy() for name, array in arrays.items()}
    write_json(run.folder / "evaluation.json", metrics)
    atomic_write(run.folder / "evaluation.npz", lambda path: _savez(path, arrays))
    draw(model, guide, data, run)
    print(json.dumps(metrics, indent=2))
    print(f"pictures, and arrays with a row an image (evaluation.npz): {run.folder}")


def as_trained(options: argparse.Namespace, run: Run) -> argparse.Namespace:
    """The options that a run was trained with, with data options replaced by those given in ``options``."""
    described, *_ = kind_of(run)
    trained = {
        "data_dir": "data",
        "valid": None,
        **cli.options_from_config(described(), run),
        "device": options.device,
        "typed": frozenset(),
    }
    given = {name: vars(options).get(name) for name in ("data", "data_dir", "reading", *cli.IMAGE_OPTIONS)}
    trained |= {name: value for name, value in given.items() if value is not None}
    missing = [name for name in ("data", "reading") if name not in trained]
    if missing and described is vaes.image_parser:
        raise InputError(f"{run.folder} does not say what it was trained on: give --{' and --'.join(missing)}.")
    if described is not vaes.image_parser and not trained.keys() >= set(cli.stored_options(described())):
        raise InputError(f"{run.folder} does not say all that it was trained with.")
    return argparse.Namespace(**trained)


def kind_of(run: Run) -> tuple[Callable, ...]:
    """The parser of a run's config.json, and the functions that load its data, measure and draw."""
    script = run.config.get("script")
    return KINDS.get(script, IMAGES) if isinstance(script, str) else IMAGES


def try_out(model, guide, images: Images, folder: Path) -> None:
    """Reject a pair that does not fit the images, before anything is measured."""
    try:
        log_probs(model, guide, images.head(2)[:])
    except Exception as error:  # the folder is untrusted, so the pair can have any sizes
        raise InputError(f"the pair in {folder} does not fit the images of its data ({error}).") from error


def weighted(model, guide, images: Images, num_samples: int, chunk: int) -> Weighted:
    """The importance-weighted bound of each image, ``chunk`` samples at a time."""
    bound = compiled_log_probs(model, guide, samples=min(chunk, num_samples), fallback=True)
    batches = tqdm(images.batches(TOGETHER), total=-(-len(images) // TOGETHER), unit=f"{TOGETHER} images")
    return importance_weighted(bound, batches, num_samples)


def gradient_variances(model: AIR, guide, batch: Tensor, repeats: int) -> dict[str, float]:
    """The unnormalized gradient variance of each estimator, for the presence layer and for the whole guide."""
    learned = {"presence": list(guide.presence.parameters())}
    learned["guide"] = [p for name, p in guide.named_parameters() if not name.startswith("baseline.")]
    variances = {}
    for name, elbo in (("reinforce", TraceGraph_ELBO()), ("summed-out", SummedOut_ELBO())):
        svi = SVI(model, guide, adam(model, guide, lr=0.0), elbo, compile="auto")
        for part, parameters in learned.items():
            variances[f"gradient_variance/{name}/{part}"] = gradient_variance(svi, (batch,), parameters, repeats)
    return variances


def _savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # np.savez would append .npz to a path
        np.savez(file, **arrays)


if __name__ == "__main__":
    cli.run_script(main)
