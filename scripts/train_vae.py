"""Train a VAE with fully connected networks on binary images."""

import vaes

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.nn.mlp import ACTIVATIONS
from pplmodels.training import cli, imports

STEPS = {"digits": 3000}


def parser() -> cli.Parser:
    """The shared options of the VAE scripts and the options of this script."""
    parser = vaes.parser(__doc__, z_dim=64)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--hidden",
        type=cli.positive_int,
        nargs="+",
        default=[800, 800],
        metavar="WIDTH",
        help="hidden layer widths, from the image to the latent",
    )
    model.add_argument("--activation", choices=ACTIVATIONS, default="silu", help="activation of the hidden layers")
    vaes.add_binarise(model)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the options, load the data, train a pair and report."""
    options, run = cli.parse(parser(), argv)
    options.reading = options.binarise
    images = vaes.load(options, run)
    vaes.complete(options, STEPS)
    sizes = {"image": images.train.shape, "z_dim": options.z_dim}

    def build() -> tuple[MLPVAE, MLPGuide]:
        nets = {**sizes, "activation": options.activation}
        model_class, guide_class = imports.user_classes(options, MLPVAE, MLPGuide)
        model = model_class(**nets, hidden_dims=options.hidden[::-1])
        return model, guide_class(**nets, hidden_dims=options.hidden)

    vaes.train(options, run, "vae", build, images)


if __name__ == "__main__":
    cli.run_script(main)
