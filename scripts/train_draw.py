"""Train DRAW, which generates an image step by step, on binary or color images."""

import argparse
import math

import vaes

from guides import DRAWGuide
from pplmodels import DRAW
from pplmodels.data import ImageSet
from pplmodels.report import painting_pictures
from pplmodels.training import Run, cli, imports

STEPS = {"digits": 2000}
GLIMPSES = {"digits": 8}


def parser() -> cli.Parser:
    """The shared options of the VAE scripts and the options of this script."""
    parser = vaes.parser(__doc__, z_dim=100, lr=1.5e-3)
    model = parser.add_argument_group("model")
    model.add_argument("--num-steps", type=cli.positive_int, metavar="T", help="number of DRAW steps (64; digits 8)")
    model.add_argument("--hidden", type=cli.positive_int, default=256, help="state size of both LSTMs")
    model.add_argument(
        "--attention",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read and write through attention windows instead of on the whole canvas",
    )
    model.add_argument("--read-window", type=cli.positive_int, default=2, metavar="N", help="size of the read window")
    model.add_argument("--write-window", type=cli.positive_int, default=5, metavar="N", help="size of the write window")
    model.add_argument(
        "--likelihood",
        choices=("bernoulli", "logit-normal", "logit-normal-learned"),
        default="bernoulli",
        help="p(x | z) of a pixel: Bernoulli, or normal in logit space",
    )
    vaes.add_binarise(model)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the options, load the data, train a pair and report."""
    options, run = cli.parse(parser(), argv)
    options.reading = options.binarise if options.likelihood == "bernoulli" else "dequantised"
    images = vaes.load(options, run)
    if options.warm_up is None and options.data in STEPS:
        options.warm_up = options.steps // 2 if options.steps else 1000  # small datasets collapse earlier
    vaes.complete(options, STEPS)
    options.num_steps = options.num_steps or GLIMPSES.get(options.data, 64)
    ink = min(max(images.train.mean(), 0.01), 0.99)

    def build() -> tuple[DRAW, DRAWGuide]:
        model_class, guide_class = imports.user_classes(options, DRAW, DRAWGuide)
        model = model_class(
            images.train.shape,
            options.num_steps,
            options.z_dim,
            options.hidden,
            options.write_window if options.attention else None,
            options.likelihood,
            canvas_start=math.log(ink / (1 - ink)),
        )
        read_window = options.read_window if options.attention else None
        return model, guide_class(model, options.hidden, read_window)

    vaes.train(options, run, "draw", build, images, draw)


def draw(model: DRAW, guide: DRAWGuide, images: ImageSet, run: Run) -> None:
    """Draw the figures of a run."""
    vaes.draw(model, guide, images, run)
    painting_pictures(model, guide, images.test, run.folder)


if __name__ == "__main__":
    cli.run_script(main)
