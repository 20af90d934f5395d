"""A VAE with a 2-D latent on points from a 2-D Gaussian, whose negative entropy is the optimal ELBO."""

from typing import Annotated, Any

from pplmodels import VectorVAE, inspect, plotting
from pplmodels.data import Images, ValidatedImageSet, identity
from pplmodels.data.gaussians import GAUSSIANS
from pplmodels.errors import InputError
from pplmodels.rng import SEEDS
from pplmodels.systems import AnnealingOptions, LogProbFunction, Pair, Trained, ValidatedSystem
from pplmodels.systems.images import image_metrics
from pplmodels.systems.options import BatchSize, LearningRate, Steps
from pplmodels.systems.pictures import curves_picture, save_picture
from pplmodels.training import Run
from pplmodels.training.options import Option, PositiveInt

from ..vae import VectorGuide

TEST_POINTS = 100_000


class VAE2DOptions(AnnealingOptions):
    """The options of the VAE of points."""

    data: Annotated[str, Option(f"a Gaussian set: {', '.join(GAUSSIANS)}", "data", "NAME")] = "rotated"
    steps: Steps = 6000
    batch_size: BatchSize = 256
    lr: LearningRate = 3e-3
    valid: Annotated[PositiveInt, Option("number of validation points", "training schedule")] = 10_000
    z_dim: Annotated[PositiveInt, Option("number of latent dimensions", "model")] = 2
    hidden: Annotated[tuple[PositiveInt, ...], Option("widths of the hidden layers", "model", "N")] = (64, 64)
    train_points: Annotated[PositiveInt, Option("number of training points", "data")] = 10_000


class VAE2DSystem(ValidatedSystem[VAE2DOptions, ValidatedImageSet]):
    """Trains :class:`pplmodels.VectorVAE` with :class:`guides.VectorGuide`."""

    name = "vae-2d"
    description = "Train a VAE with a 2-D latent on points from a Gaussian, whose negative entropy is the optimal ELBO."
    options_class = VAE2DOptions

    def load(self, options: VAE2DOptions) -> ValidatedImageSet:
        """Independent draws for training, validation and test."""
        if options.data not in GAUSSIANS:
            raise InputError(f"unknown Gaussian dataset {options.data!r}: choose {', '.join(GAUSSIANS)}.")
        gaussian, device = GAUSSIANS[options.data], options.torch_device()
        numbers = options.train_points, TEST_POINTS, options.valid
        points = (gaussian.draw(n, seed=(3 * options.seed + i) % SEEDS) for i, n in enumerate(numbers))
        return ValidatedImageSet(*(Images(x.to(device), transform=identity) for x in points))

    def classes(self, options: VAE2DOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return VectorVAE, VectorGuide

    def build(self, options: VAE2DOptions, data: ValidatedImageSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair."""
        sizes = {"x_dim": 2, "z_dim": options.z_dim, "hidden_dims": options.hidden}
        return model_class(**sizes), guide_class(**sizes)

    def metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, images: Images) -> dict[str, Any]:
        """The ELBO, its terms and measures of latent usage."""
        return image_metrics(log_probs, model, guide, images)

    def plot(self, model: Any, guide: Any, data: ValidatedImageSet, run: Run) -> None:
        """Curves, and clouds.png: points with contours of the true density."""
        curves_picture(run.metrics, run.folder)
        truth = GAUSSIANS[run.config["data"]].distribution()
        clouds = {
            "data": data.test.head(2000)[:],
            "x ~ p(x)": inspect.sample(model, 2000),
            "E[x | z], z ~ p(z)": inspect.sample_means(model, 2000),
        }
        arrays = {name: cloud.cpu().numpy() for name, cloud in clouds.items()}
        picture = plotting.scatter(arrays, truth.mean.numpy(), truth.covariance_matrix.numpy())
        save_picture(picture, run.folder / "clouds.png")

    def report(self, options: VAE2DOptions, data: ValidatedImageSet, run: Run, trained: Trained) -> None:
        """Also print the optimal ELBO."""
        super().report(options, data, run, trained)
        entropy = GAUSSIANS[options.data].entropy()
        print(f"the optimal ELBO, the negative entropy of the data: {-entropy:.4f} nats")


SYSTEM = VAE2DSystem()
