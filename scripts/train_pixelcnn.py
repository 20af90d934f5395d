"""Train a PixelCNN on the codes of a trained VQ-VAE, or on the pixels of gray images."""

import argparse
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import vaes
from torch import Tensor

from guides import EmptyGuide, VQGuide
from pplmodels import VQVAE, GatedPixelCNN, PixelCNN, inspect, plotting
from pplmodels.data import Images, ImageSet, load_images
from pplmodels.data.transforms import GRID_TRANSFORMS
from pplmodels.errors import InputError
from pplmodels.io import PAIR, newest_run, write_json
from pplmodels.metrics import elbo_terms, log_probs
from pplmodels.metrics.bounds import LogProbs
from pplmodels.registry import load_pair
from pplmodels.report import curves_picture, level_bits, map_metrics, save_picture
from pplmodels.training import Run, cli, imports

STEPS = {"digits": 600}
SAMPLES = 48


def parser() -> cli.Parser:
    """The shared options of the VAE scripts and the options of this script."""
    parser = vaes.parser(__doc__, z_dim=None, annealed=False)
    parser.set_defaults(patience=3)  # a prior overfits small training sets
    parser.add_argument("stage_one", nargs="?", metavar="RUN", help="run of a VQ-VAE (default: pixels of --data)")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--gated",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="two stacks of gated layers without a blind spot, instead of residual blocks of masked convolutions",
    )
    model.add_argument("--channels", type=cli.positive_int, default=64, metavar="N", help="number of channels")
    model.add_argument("--layers", type=cli.positive_int, default=10, metavar="N", help="number of layers or blocks")
    model.add_argument("--size", type=cli.odd_int, default=7, help="kernel size of the convolutions")
    model.add_argument("--embedding", type=cli.positive_int, default=64, metavar="N", help="embedding size of a value")
    model.add_argument("--hidden", type=cli.positive_int, default=512, metavar="N", help="channels before the logits")
    model.add_argument(
        "--pixels",
        choices=("bits", "levels"),
        default="bits",
        help="bits: pixels are cut at a half; levels: pixels have 256 values",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the options, load or infer the maps, train a pair and report."""
    options, run = cli.parse(parser(), argv)
    if options.stage_one:
        options.stage_one = str(newest_run(options.stage_one, PAIR))
    maps = load(options, run)
    vaes.complete(options, STEPS)

    def build() -> tuple[PixelCNN | GatedPixelCNN, EmptyGuide]:
        sizes = {name: getattr(options, name) for name in ("channels", "layers", "size", "embedding", "hidden")}
        kind = GatedPixelCNN if options.gated else PixelCNN
        model_class, guide_class, *_ = imports.user_classes(
            options, kind, EmptyGuide, VQVAE, VQGuide
        )  # the file may instead define classes of stage one
        return model_class(map=maps.train.shape[-2:], levels=options.levels, **sizes), guide_class()

    folder = vaes.train(options, run, "pixelcnn", build, maps, draw, map_metrics)
    if options.stage_one:
        print(report_images(options, folder))


def load(options: argparse.Namespace, run: Run | None = None) -> ImageSet:
    """Integer maps ``(H, W)``: the VQ-VAE's codes, each inferred once, or the pixels of gray images."""
    if options.stage_one is None:
        options.reading = options.pixels
        options.levels = {"bits": 2, "levels": 256}[options.pixels]
        images = load_images(options.data, options.data_dir, **cli.image_options(options))
        images = images.with_validation(options.valid)
        if images.train.shape[0] != 1:
            raise InputError(f"{options.data} has colours: only grey images are maps of pixels here.")
        vaes.say_binarised(images.train, options.reading)
        device = cli.resolve_device(options.device)
        maps = images.map(lambda part: part.read_as(GRID_TRANSFORMS[options.reading]).to(device))
    else:
        model, guide, images = stage_one(options)
        options.reading, options.levels = "codes", len(model.codebook)
        options.codebook = hashlib.sha256(model.codebook.vectors.detach().cpu().numpy().tobytes()).hexdigest()
        if run is not None and run.config.get("codebook") != options.codebook:
            raise InputError(f"{run.folder} was trained on another codebook than that of {options.stage_one}.")
        maps = images.map(lambda part: Images(_codes(guide, part), reading=GRID_TRANSFORMS["codes"]))
    cli.check_images(options, run, maps.train.shape)
    return maps


def stage_one(options: argparse.Namespace) -> tuple[VQVAE, VQGuide, ImageSet]:
    """The VQ-VAE whose codes are modeled, in evaluation mode and without gradients, and its images."""
    first = Run.open(options.stage_one)
    if first.config.get("script") != "vq-vae":
        raise InputError(f"{options.stage_one} is not the run of a VQ-VAE.")
    pair = [half.requires_grad_(False).to(cli.resolve_device(options.device)) for half in load_pair(first.folder)]
    if not isinstance(pair[0], VQVAE) or not isinstance(pair[1], VQGuide):
        raise InputError(f"{options.stage_one} does not hold the pair of a VQ-VAE.")
    trained = argparse.Namespace(**{**cli.options_from_config(vaes.image_parser(), first), "device": options.device})
    if not {"data", "data_dir", "valid", "reading"} <= vars(trained).keys():
        raise InputError(f"{options.stage_one} does not say what it was trained on.")
    options.data = trained.data
    return *pair, vaes.load(trained)


@torch.no_grad()
def _codes(guide: VQGuide, images: Images) -> Tensor:
    """The codes of all images, int16 ``(N, H/4, W/4)``."""
    return torch.cat([inspect.infer_codes(guide, x).to(torch.int16) for x in images.batches()])


def measure(bound: Callable[[Tensor], LogProbs], model, guide: EmptyGuide, maps: ImageSet) -> dict:
    """The metrics of the held-out maps."""
    return map_metrics(bound, model, guide, maps.test)


def report_images(options: argparse.Namespace, folder: Path) -> str:
    """Add stage one's ELBO on test images under the learned prior to result.json; returns a sentence about it."""
    model, guide, images = stage_one(options)
    prior, _ = load_pair(folder)
    model.use_prior(prior.to(images.test.pixels.device))
    terms, _ = elbo_terms(partial(log_probs, model, guide), images.test.batches())
    found = {"image_elbo": terms["elbo"]}
    if (per_dim := level_bits(images.test, terms["elbo"])) is not None:
        found["image_bits_per_dim"] = per_dim
    result = json.loads((folder / "result.json").read_text())
    result["metrics"] |= found
    write_json(folder / "result.json", result)
    return "with this prior, of stage one's test images: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items())


def draw(model: PixelCNN | GatedPixelCNN, guide: EmptyGuide, maps: ImageSet, run: Run) -> None:
    """Draw the figures of a run: curves, and samples under the learned prior and under the uniform prior."""
    curves_picture(run.metrics, run.folder)
    if run.config["stage_one"] is None:
        drawn = inspect.sample(model, SAMPLES).unsqueeze(1) / (model.levels - 1)
        pictures = {"samples": drawn}
    else:
        options = argparse.Namespace(stage_one=run.config["stage_one"], device=str(maps.test.pixels.device))
        first, _, _ = stage_one(options)
        pictures = {"samples-uniform": inspect.sample_means(first, SAMPLES)}
        first.use_prior(model)
        pictures["samples"] = inspect.sample_means(first, SAMPLES)
    for name, images in pictures.items():
        rows = images.clamp(0, 1).cpu().numpy().reshape(-1, 12, *images.shape[1:])
        save_picture(plotting.image_rows(rows, [""] * len(rows)), run.folder / f"{name}.png")


if __name__ == "__main__":
    cli.run_script(main)
