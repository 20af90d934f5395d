"""Train a convolutional VAE on color or gray images."""

import argparse

import vaes
from torch import nn

from guides import ConvGuide
from pplmodels import ConvVAE
from pplmodels.data.transforms import DEFAULT_TRANSFORMS
from pplmodels.models.likelihoods import LIKELIHOODS
from pplmodels.training import cli, imports

STEPS = {"digits": 2000}
PLACES = ("none", "prior", "posterior")


def parser(description: str, flow: str) -> cli.Parser:
    """The shared options of the VAE scripts and the options of this script."""
    parser = vaes.parser(description, z_dim=16)
    model = parser.add_argument_group("model")
    model.add_argument("--likelihood", choices=LIKELIHOODS, default="mixture", help="p(x | z) of a pixel")

    def add_channels(flag: str, default: list[int], help: str) -> None:
        model.add_argument(flag, type=cli.positive_int, nargs="+", default=default, metavar="N", help=help)

    add_channels("--encoder-channels", [32, 64, 128, 256], "channels of the encoder layers, each halving the size")
    add_channels("--decoder-channels", [128, 128, 64, 32], "channels of the decoder layers, each doubling the size")
    model.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end the decoder with a full-resolution convolution instead of a cheaper transposed convolution",
    )
    model.add_argument("--flow", choices=PLACES, default=flow, help="where to use an autoregressive flow")
    model.add_argument(
        "--flow-hidden", type=cli.positive_int, nargs="+", default=[512, 512], metavar="N", help="hidden layer widths"
    )
    model.add_argument(
        "--flow-start",
        type=cli.fraction,
        default=0.5,
        help="fraction of the steps before the flow, initially the identity, is trained",
    )
    return parser


def main(argv: list[str] | None = None, description: str = __doc__, name: str = "image-vae", flow: str = "none"):
    """Parse the options, load the data, train a pair and report."""
    options, run = cli.parse(parser(description, flow), argv)
    options.reading = DEFAULT_TRANSFORMS[LIKELIHOODS[options.likelihood].kind]
    images = vaes.load(options, run)
    vaes.complete(options, STEPS)
    sizes = {"image": images.train.shape, "z_dim": options.z_dim}
    prior, posterior = (options.flow_hidden if options.flow == place else None for place in ("prior", "posterior"))

    def build() -> tuple[ConvVAE, ConvGuide]:
        decoder = {"channels": options.decoder_channels, "refine": options.refine}
        model_class, guide_class = imports.user_classes(options, ConvVAE, ConvGuide)
        model = model_class(**sizes, **decoder, likelihood=options.likelihood, flow=prior)
        return model, guide_class(**sizes, channels=options.encoder_channels, flow=posterior)

    def network(model: ConvVAE, guide: ConvGuide) -> nn.Module | None:
        return {"prior": model.prior, "posterior": guide.network}.get(options.flow)

    vaes.train(options, run, name, build, images, late=network, late_from=options.flow_start)


if __name__ == "__main__":
    cli.run_script(main)
