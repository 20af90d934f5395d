"""The recipe of systems that model images: options, binarization, schedules, metrics and plots."""

from abc import abstractmethod
from collections import Counter
from typing import Annotated, Any, Generic, Literal, TypeVar

from pplmodels.data import Images, ValidatedImageSet, load_images
from pplmodels.data.transforms import TRANSFORMS
from pplmodels.errors import InputError
from pplmodels.messages import say
from pplmodels.metrics import active_units, bits_per_dim, elbo_surgery, elbo_terms
from pplmodels.sites import base_site_name
from pplmodels.systems.options import ImageFileOptions
from pplmodels.systems.pictures import image_pictures
from pplmodels.systems.system import LogProbFunction, shard_batches
from pplmodels.systems.validated import AnnealingOptions, ScheduleOptions, ValidatedSystem
from pplmodels.training import Run
from pplmodels.training.options import Option

Binarise = Annotated[
    Literal["dynamic", "threshold", "static"],
    Option(
        "dynamic: sample pixels each time an image is used; threshold: 1 above one half; static: data are binary",
        "model",
    ),
]


class ImageOptions(ImageFileOptions, ScheduleOptions):
    """The options of systems that model images."""


class LatentImageOptions(ImageOptions, AnnealingOptions):
    """The options of systems that model images with latents whose KL can be annealed."""


ImageOptionsT = TypeVar("ImageOptionsT", bound=ImageOptions)


class ImageSystem(ValidatedSystem[ImageOptionsT, ValidatedImageSet], Generic[ImageOptionsT]):
    """A system that models images."""

    @abstractmethod
    def transform(self, options: ImageOptionsT) -> str:
        """The name of the pixel transform that the likelihood needs (:data:`pplmodels.data.transforms.TRANSFORMS`)."""

    def load(self, options: ImageOptionsT) -> ValidatedImageSet:
        """The images with the pixel transform of the likelihood."""
        return load_transformed(options, self.transform(options))

    def metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, images: Images) -> dict[str, Any]:
        """:func:`image_metrics` of the images."""
        return image_metrics(log_probs, model, guide, images)

    def plot(self, model: Any, guide: Any, data: ValidatedImageSet, run: Run) -> None:
        """Curves, reconstructions, samples and views of the latent space."""
        image_pictures(model, guide, data.test, run.metrics, run.folder)


def load_transformed(options: ImageOptions, transform: str) -> ValidatedImageSet:
    """The images given by the options with a pixel transform, on the selected device.

    Validation and test images are binarized only once. Raises :class:`pplmodels.errors.InputError`.
    """
    images = load_images(options.data, options.data_dir, **options.loading()).with_validation(options.valid)
    if transform == "static":
        for part in (images.train, images.test, images.valid):
            if not black_and_white(part):
                raise InputError(
                    f"{options.data} has gray pixels, but --binarise static requires pixels of 0 and 255: "
                    "use --binarise dynamic or --binarise threshold."
                )
    say_binarised(images.train, transform)
    images = images.map(lambda part: part.with_transform(TRANSFORMS[transform]))
    if images.train.transform.kind == "binary" and images.train.transform.random:
        images = ValidatedImageSet(images.train, images.test.frozen(seed=0), images.valid.frozen(seed=0))
    device = options.torch_device()
    return images.map(lambda part: part.to(device))


def black_and_white(images: Images) -> bool:
    """Whether all pixels are 0 or 255."""
    return all(bool(((levels == 0) | (levels == 255)).all()) for levels in images.levels())


def say_binarised(images: Images, transform: str) -> None:
    """Print how gray or color images are binarized."""
    made = {
        "dynamic": "sampled as 0 or 1 with their intensity as probability each time an image is used",
        "threshold": "set to 1 above one half and to 0 otherwise",
        "bits": "set to 1 above one half and to 0 otherwise (--pixels)",
    }
    if transform in made and not black_and_white(images):
        kind = "the channels of color pixels" if images.shape[0] == 3 else "gray pixels"
        say(f"{kind} are {made[transform]}; use train_image_vae.py to model their levels")


def image_metrics(log_probs: LogProbFunction, model, guide, images: Images) -> dict:
    """The ELBO split by site, bits per dimension for 8-bit images, and measures of latent usage.

    These are ``active_units``, or ``active_units/<site>`` summed over steps if there are several sites. Models with a
    single latent per image also get the estimates of :func:`pplmodels.metrics.elbo_surgery`, from 1,000 images.
    """
    metrics, _ = elbo_terms(log_probs, shard_batches(images))
    if (bits := level_bits(images, metrics["elbo"])) is not None:
        metrics["bits_per_dim"] = bits
    units = active_units(guide, shard_batches(images))
    active: Counter[str] = Counter()
    for site, number in units.items():
        active[base_site_name(site)] += number
    if len(active) != 1:
        return metrics | {f"active_units/{site}": number for site, number in active.items()}
    metrics["active_units"] = active.total()
    some = images.head(images.at_once(1000))[:]
    return metrics | (elbo_surgery(model, guide, some, *units) if len(units) == 1 else {})


def level_bits(images: Images, nats: float) -> float | None:
    """A log-probability in nats per image as bits per dimension, or None if the images are not 8-bit levels."""
    if images.transform.kind not in ("mass", "density"):
        return None
    return bits_per_dim(nats, images.shape, images.transform.kind == "density")
