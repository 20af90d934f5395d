"""Train a VQ-VAE on images. Its prior is trained afterward, with --with-prior or by train_pixelcnn.py RUN."""

import argparse
from collections.abc import Callable
from pathlib import Path

import train_pixelcnn
import vaes
from torch import Tensor

from guides import VQGuide
from pplmodels import VQVAE
from pplmodels.data import ImageSet
from pplmodels.data.transforms import DEFAULT_TRANSFORMS
from pplmodels.metrics.bounds import LogProbs
from pplmodels.models.likelihoods import LIKELIHOODS
from pplmodels.report import code_metrics, code_pictures
from pplmodels.training import Run, cli, imports

STEPS = {"digits": 1500}


def parser() -> cli.Parser:
    """The shared options of the VAE scripts and the options of this script."""
    parser = vaes.parser(__doc__, z_dim=None, annealed=False)
    model = parser.add_argument_group("model")
    model.add_argument("--codes", type=cli.positive_int, default=128, metavar="K", help="number of codebook vectors")
    model.add_argument("--dim", type=cli.positive_int, default=256, metavar="D", help="size of a codebook vector")
    model.add_argument("--channels", type=cli.positive_int, default=128, metavar="N", help="number of channels")
    model.add_argument(
        "--blocks",
        type=cli.positive_int,
        default=2,
        metavar="N",
        help="residual blocks in each of encoder and decoder",
    )
    model.add_argument("--likelihood", choices=LIKELIHOODS, default="logistic", help="p(x | z) of a pixel")
    book = parser.add_argument_group("codebook")
    book.add_argument("--commitment", type=cli.positive_float, default=0.25, help="weight of the commitment loss")
    book.add_argument(
        "--codebook", choices=("means", "gradient"), default="means", help="train by running means or by gradient"
    )
    book.add_argument("--decay", type=cli.fraction, default=0.99, help="decay of the running means")
    book.add_argument(
        "--codebook-start",
        choices=("batch", "uniform"),
        default="batch",
        help="initialization: encoder outputs of the first batch (batch) or uniform in [-1/K, 1/K] (uniform)",
    )
    prior = parser.add_argument_group("prior")
    prior.add_argument("--with-prior", action="store_true", help="train a Gated PixelCNN afterward, in RUN/prior")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the options, load the data, train a pair and report."""
    options, run = cli.parse(parser(), argv)
    options.reading = DEFAULT_TRANSFORMS[LIKELIHOODS[options.likelihood].kind]
    images = vaes.load(options, run)
    vaes.complete(options, STEPS)

    def build() -> tuple[VQVAE, VQGuide]:
        sizes = {"channels": options.channels, "blocks": options.blocks}
        decay = options.decay if options.codebook == "means" else None
        book = {"codes": options.codes, "dim": options.dim, "decay": decay}
        model_class, guide_class = imports.user_classes(options, VQVAE, VQGuide)
        model = model_class(images.train.shape, **book, **sizes, likelihood=options.likelihood)
        guide = guide_class(model, **sizes, commitment=options.commitment)
        if options.codebook_start == "batch":
            guide.init_codebook(images.train.head(options.batch_size)[:].cpu())
        return model, guide

    folder = vaes.train(options, run, "vq-vae", build, images, draw, code_metrics, objective="bound_less_distances")
    if options.with_prior:
        train_pixelcnn.main([str(folder), *prior_options(options, folder / "prior")])


def prior_options(options: argparse.Namespace, folder: Path) -> list[str]:
    """The command-line options of the prior's training in ``folder``; stored options only if it is a new run."""
    given = ["--out", str(folder), "--device", options.device, "--compile" if options.compile else "--no-compile"]
    if options.imports:
        given += ["--import", options.imports]
    if (folder / "config.json").exists():
        return [*given, "--resume"]
    return [*given, "--seed", str(options.seed), "--precision", options.precision]


def measure(bound: Callable[[Tensor], LogProbs], model: VQVAE, guide: VQGuide, images: ImageSet) -> dict:
    """The metrics of the held-out images."""
    return code_metrics(bound, model, guide, images.test)


def draw(model: VQVAE, guide: VQGuide, images: ImageSet, run: Run) -> None:
    """Draw the figures of a run."""
    vaes.draw(model, guide, images, run)
    code_pictures(model, guide, images.test, run.folder)


if __name__ == "__main__":
    cli.run_script(main)
