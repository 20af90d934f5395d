"""Train a ladder VAE, which has a hierarchy of latents, on binary images."""

import argparse

import vaes

from guides import LadderGuide
from pplmodels import LadderVAE
from pplmodels.training import cli, imports

STEPS = {"digits": 2000}


def parser() -> cli.Parser:
    """The shared options of the VAE scripts and the options of this script."""
    parser = vaes.parser(__doc__, z_dim=None, batch_size=256)
    model = parser.add_argument_group("model")
    for flag, default, help in (
        ("--z-dims", [64, 32, 16, 8, 4], "sizes of the latent layers, bottom to top"),
        ("--hidden", [512, 256, 128, 64, 32], "widths of the networks, bottom to top"),
    ):
        model.add_argument(flag, type=cli.positive_int, nargs="+", default=default, metavar="N", help=help)
    model.add_argument(
        "--batch-norm", action=argparse.BooleanOptionalAction, default=True, help="use batch norm in all networks"
    )
    vaes.add_binarise(model)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the options, load the data, train a pair and report."""
    options, run = cli.parse(parser(), argv)
    options.reading = options.binarise
    images = vaes.load(options, run)
    vaes.complete(options, STEPS)

    def build() -> tuple[LadderVAE, LadderGuide]:
        model_class, guide_class = imports.user_classes(options, LadderVAE, LadderGuide)
        model = model_class(images.train.shape, options.z_dims, options.hidden, options.batch_norm)
        return model, guide_class(model)

    vaes.train(options, run, "ladder-vae", build, images)


if __name__ == "__main__":
    cli.run_script(main)
