"""Train a VAE with fully connected networks on black and white images."""

import vaes

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.data import bernoulli, thresholded
from pplmodels.training import cli

BINARISATIONS = {"dynamic": bernoulli, "threshold": thresholded}
STEPS = {"digits": 3000}


def parser() -> cli.Parser:
    """The family's options and this script's."""
    parser = vaes.parser(__doc__, z_dim=64)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--hidden",
        type=cli.positive_int,
        nargs="+",
        default=[500, 500],
        metavar="WIDTH",
        help="from the image to the code",
    )
    model.add_argument(
        "--binarise", choices=BINARISATIONS, default="dynamic", help="dynamic: drawn anew each time an image is seen"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build the pair, fit, report."""
    options, run = cli.parse(parser(), argv)
    images = vaes.image_set(options, BINARISATIONS[options.binarise], cli.find_device(options.device))
    vaes.complete(options, STEPS)
    run = run or cli.open_run(options, "vae")
    sizes = {"image": images.train.shape, "z_dim": options.z_dim}
    vaes.train(
        options,
        run,
        lambda: (MLPVAE(**sizes, hidden_dims=options.hidden[::-1]), MLPGuide(**sizes, hidden_dims=options.hidden)),
        images,
    )


if __name__ == "__main__":
    cli.run_script(main)
