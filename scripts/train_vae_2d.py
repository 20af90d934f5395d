"""Train a VAE with a two-dimensional code on Gaussian points in the plane, whose entropy is the bound to reach."""

import argparse

import vaes

from guides import PlaneGuide
from pplmodels import PlaneVAE, inspect, plotting
from pplmodels.data import Images, as_they_are
from pplmodels.data.gaussians import GAUSSIANS
from pplmodels.training import cli


def parser() -> cli.Parser:
    """The family's options and this script's."""
    parser = vaes.parser(__doc__, z_dim=2, batch_size=256, lr=3e-3)
    parser.set_defaults(data="rotated", valid=10_000, steps=6000)
    parser.add_argument("--hidden", type=cli.positive_int, nargs="+", default=[64, 64], metavar="N", help="widths")
    parser.add_argument("--train-points", type=cli.positive_int, default=10_000, help="number to train on")
    return parser


def points(options: argparse.Namespace) -> vaes.ImageSet:
    """Fresh draws for training, validation and test: no row of one is a row of another."""
    if options.data not in GAUSSIANS:
        raise vaes.InputError(f"there is no Gaussian set {options.data!r}: choose {', '.join(GAUSSIANS)}.")
    gaussian, device = GAUSSIANS[options.data], cli.find_device(options.device)
    numbers = options.train_points, options.valid, 100_000
    draws = (gaussian.draw(n, seed=3 * options.seed + i) for i, n in enumerate(numbers))
    return vaes.ImageSet(*(Images(x.to(device), reading=as_they_are) for x in draws))


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build the pair, fit, report."""
    options, run = cli.parse(parser(), argv)
    sets = points(options)
    vaes.complete(options, {})
    run = run or cli.open_run(options, "vae-2d")
    sizes = {"x_dim": 2, "z_dim": options.z_dim, "hidden_dims": options.hidden}
    model, _ = vaes.train(options, run, lambda: (PlaneVAE(**sizes), PlaneGuide(**sizes)), sets)
    gaussian = GAUSSIANS[options.data]
    print(f"the entropy, which no bound on fresh points can beat: {gaussian.entropy():.4f} nats")
    clouds = {
        "data": sets.test.head(2000)[:],
        "x ~ p(x)": inspect.samples(model, 2000),
        "E[x | z], z ~ p(z)": inspect.sample_images(model, 2000),
    }
    truth = gaussian.distribution()
    picture = plotting.clouds(
        {name: cloud.cpu().numpy() for name, cloud in clouds.items()}, truth.mean, truth.covariance_matrix
    )
    plotting.save(picture, run.folder / "clouds.png")


if __name__ == "__main__":
    cli.run_script(main)
