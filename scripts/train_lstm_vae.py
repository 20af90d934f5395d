"""Train a VAE with an LSTM encoder that reads images row by row and a transposed-convolution decoder."""

import vaes

from guides import LSTMGuide
from pplmodels import ConvVAE
from pplmodels.training import cli, imports

STEPS = {"digits": 2000}


def parser() -> cli.Parser:
    """The shared options of the VAE scripts and the options of this script."""
    parser = vaes.parser(__doc__, z_dim=32, lr=2e-3)
    model = parser.add_argument_group("model")
    model.add_argument("--hidden", type=cli.positive_int, default=128, help="state size of the LSTM")
    model.add_argument(
        "--channels",
        type=cli.positive_int,
        nargs="+",
        default=[64, 32],
        metavar="N",
        help="channels of the decoder layers, coarse to fine",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the options, load the data, train a pair and report."""
    options, run = cli.parse(parser(), argv)
    options.reading = "dynamic"
    images = vaes.load(options, run)
    vaes.complete(options, STEPS)
    sizes = {"image": images.train.shape, "z_dim": options.z_dim}

    def build() -> tuple[ConvVAE, LSTMGuide]:
        decoder = {"channels": options.channels, "refine": False}
        model_class, guide_class = imports.user_classes(options, ConvVAE, LSTMGuide)
        model = model_class(**sizes, **decoder, likelihood="bernoulli")
        return model, guide_class(**sizes, hidden_dim=options.hidden)

    vaes.train(options, run, "lstm-vae", build, images)


if __name__ == "__main__":
    cli.run_script(main)
