"""Train a VAE with a 2-D latent on points from a 2-D Gaussian, whose negative entropy is the optimal ELBO."""

import argparse

import vaes

from guides import VectorGuide
from pplmodels import VectorVAE, inspect, plotting
from pplmodels.data import Images, ImageSet, identity
from pplmodels.data.gaussians import GAUSSIANS
from pplmodels.errors import InputError
from pplmodels.report import save_picture
from pplmodels.rng import SEEDS
from pplmodels.training import Run, cli, imports

TEST_POINTS = 100_000


def parser() -> cli.Parser:
    """The shared options of the VAE scripts and the options of this script."""
    known = f"a Gaussian set: {', '.join(GAUSSIANS)}"
    parser = vaes.parser(__doc__, z_dim=2, batch_size=256, lr=3e-3, data="rotated", known=known)
    parser.set_defaults(valid=10_000, steps=6000)
    parser.add_argument("--hidden", type=cli.positive_int, nargs="+", default=[64, 64], metavar="N", help="widths")
    parser.add_argument("--train-points", type=cli.positive_int, default=10_000, help="number of training points")
    return parser


def load(options: argparse.Namespace, run: Run | None = None) -> ImageSet:
    """Independent draws for training, validation and test."""
    if options.data not in GAUSSIANS:
        raise InputError(f"there is no Gaussian set {options.data!r}: choose {', '.join(GAUSSIANS)}.")
    gaussian, device = GAUSSIANS[options.data], cli.resolve_device(options.device)
    numbers = options.train_points, TEST_POINTS, options.valid
    draws = (gaussian.draw(n, seed=(3 * options.seed + i) % SEEDS) for i, n in enumerate(numbers))
    images = ImageSet(*(Images(x.to(device), reading=identity) for x in draws))
    cli.check_images(options, run, images.train.shape)
    return images


def draw(model, guide, images: ImageSet, run: Run) -> None:
    """Draw the figures of a run, including clouds.png: points with contours of the true density."""
    vaes.draw(model, guide, images, run)
    truth = GAUSSIANS[run.config["data"]].distribution()
    clouds = {
        "data": images.test.head(2000)[:],
        "x ~ p(x)": inspect.sample(model, 2000),
        "E[x | z], z ~ p(z)": inspect.sample_means(model, 2000),
    }
    arrays = {name: cloud.cpu().numpy() for name, cloud in clouds.items()}
    picture = plotting.clouds(arrays, truth.mean.numpy(), truth.covariance_matrix.numpy())
    save_picture(picture, run.folder / "clouds.png")


def main(argv: list[str] | None = None) -> None:
    """Parse the options, load the data, train a pair and report."""
    options, run = cli.parse(parser(), argv)
    points = load(options, run)
    vaes.complete(options, {})
    sizes = {"x_dim": 2, "z_dim": options.z_dim, "hidden_dims": options.hidden}
    halves = imports.user_classes(options, VectorVAE, VectorGuide)
    vaes.train(options, run, "vae-2d", lambda: [half(**sizes) for half in halves], points, draw)
    print(f"the entropy, which no bound on fresh points can beat: {GAUSSIANS[options.data].entropy():.4f} nats")


if __name__ == "__main__":
    cli.run_script(main)
