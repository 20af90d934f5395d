"""Train a convolutional VAE on colour or grey images; with --flow it is a VLAE's autoregressive-flow prior."""

import vaes

from guides import ConvGuide
from pplmodels import ConvVAE
from pplmodels.training import cli
from pplmodels.vae import LIKELIHOODS

READINGS = {"bernoulli": "dynamic", "mixture": "levels"}  # others are densities of dequantised values
STEPS = {"digits": 2000}
FLOW = [512, 512]


def parser() -> cli.Parser:
    """The family's options and this script's."""
    parser = vaes.parser(__doc__, z_dim=16)
    model = parser.add_argument_group("model")
    model.add_argument("--likelihood", choices=LIKELIHOODS, default="mixture", help="p(x | z) of a pixel")
    model.add_argument(
        "--channels",
        type=cli.positive_int,
        nargs="+",
        default=[32, 64, 128],
        metavar="N",
        help="of maps, fine to coarse",
    )
    model.add_argument("--flow", choices=("none", "prior", "posterior"), default="none", help="where one MADE goes")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build the pair, fit, report."""
    options, run = cli.parse(parser(), argv)
    options.reading = READINGS.get(options.likelihood, "dequantised")
    images = vaes.load(options, run)
    vaes.complete(options, STEPS)
    run = run or cli.open_run(options, "image-vae")
    sizes = {"image": images.train.shape, "z_dim": options.z_dim}
    prior, posterior = (FLOW if options.flow == place else None for place in ("prior", "posterior"))

    def build() -> tuple[ConvVAE, ConvGuide]:
        model = ConvVAE(**sizes, channels=options.channels[::-1], likelihood=options.likelihood, flow=prior)
        return model, ConvGuide(**sizes, channels=options.channels, flow=posterior)

    vaes.train(options, run, build, images)


if __name__ == "__main__":
    cli.run_script(main)
