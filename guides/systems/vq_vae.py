"""A VQ-VAE on images, whose prior is trained afterward."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from pplmodels import VQVAE, distributed, inspect, plotting
from pplmodels.data import Images, ValidatedImageSet
from pplmodels.data.transforms import DEFAULT_TRANSFORMS
from pplmodels.metrics import codebook_counts, codebook_usage
from pplmodels.models.likelihoods import LIKELIHOODS
from pplmodels.systems import ImageOptions, ImageSystem, LogProbFunction, Pair
from pplmodels.systems.command_line import resume
from pplmodels.systems.images import image_metrics
from pplmodels.systems.options import Steps, by_data
from pplmodels.systems.pictures import save_picture
from pplmodels.systems.system import shard_batches
from pplmodels.training import Run
from pplmodels.training.cli import resumable
from pplmodels.training.options import Fraction, Option, PositiveFloat, PositiveInt, Switch

from ..vq_vae import VQGuide
from .image_vae import Likelihood
from .pixelcnn import SYSTEM as PIXELCNN
from .pixelcnn import PixelCNNOptions, maps_of, stage_one


class VQVAEOptions(ImageOptions):
    """The options of the VQ-VAE, whose KL has no gradient, so that annealing it would have no effect."""

    steps: Steps = by_data({"digits": 1500}, 20_000)
    codes: Annotated[PositiveInt, Option("number of codebook vectors", "model", "K")] = 128
    dim: Annotated[PositiveInt, Option("size of a codebook vector", "model", "D")] = 256
    channels: Annotated[PositiveInt, Option("number of channels", "model", "N")] = 128
    blocks: Annotated[PositiveInt, Option("residual blocks in each of encoder and decoder", "model", "N")] = 2
    likelihood: Likelihood = "logistic"
    commitment: Annotated[PositiveFloat, Option("weight of the commitment loss", "codebook")] = 0.25
    codebook: Annotated[Literal["means", "gradient"], Option("train by running means or by gradient", "codebook")] = (
        "means"
    )
    decay: Annotated[Fraction, Option("decay of the running means", "codebook")] = 0.99
    codebook_start: Annotated[
        Literal["batch", "uniform"],
        Option(
            "initialization: encoder outputs of the first batch (batch) or uniform in [-1/K, 1/K] (uniform)",
            "codebook",
        ),
    ] = "batch"
    with_prior: Annotated[Switch, Option("train a Gated PixelCNN afterward, in RUN/prior", "prior", scope="once")] = (
        False
    )


class VQVAESystem(ImageSystem[VQVAEOptions]):
    """Trains :class:`pplmodels.VQVAE` with :class:`guides.VQGuide`."""

    name = "vq-vae"
    description = "Train a VQ-VAE on images, and with --with-prior the prior of its codes."
    options_class = VQVAEOptions
    objective_name = "bound_less_distances"

    def transform(self, options: VQVAEOptions) -> str:
        """The transform that the likelihood needs."""
        return DEFAULT_TRANSFORMS[LIKELIHOODS[options.likelihood].kind]

    def classes(self, options: VQVAEOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return VQVAE, VQGuide

    def build(self, options: VQVAEOptions, data: ValidatedImageSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair."""
        sizes = {"channels": options.channels, "blocks": options.blocks}
        decay = options.decay if options.codebook == "means" else None
        book = {"codes": options.codes, "dim": options.dim, "decay": decay}
        model = model_class(data.train.shape, **book, **sizes, likelihood=options.likelihood)
        guide = guide_class(model, **sizes, commitment=options.commitment)
        if options.codebook_start == "batch":
            guide.init_codebook(data.train.head(options.batch_size)[:].cpu())
        return model, guide

    def metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, images: Images) -> dict[str, Any]:
        """:func:`code_metrics` of the images."""
        return code_metrics(log_probs, model, guide, images)

    def plot(self, model: Any, guide: Any, data: ValidatedImageSet, run: Run) -> None:
        """The plots of all image systems, the usage of the codes, and images with their codes."""
        super().plot(model, guide, data, run)
        code_pictures(model, guide, data.test, run.folder)

    def train(self, options: VQVAEOptions, run: Run | None = None, data: ValidatedImageSet | None = None) -> Run:
        """Train the pair and, with ``--with-prior``, the prior of its codes."""
        data = self.load(options) if data is None else data
        run = super().train(options, run, data)
        if options.with_prior:
            with resumable(run):
                train_prior(options, run.folder, data)
        return run


def train_prior(options: VQVAEOptions, folder: Path, images: ValidatedImageSet) -> None:
    """Train or resume the prior of the codes in ``folder``, as the VQ-VAE was trained, in ``folder/prior``."""
    out = folder / "prior"
    given = {"out": str(out), "device": options.device, "compile": options.compile, "imports": options.imports}
    maps = maps_of(stage_one(folder, options.torch_device(), images))
    if (out / "config.json").exists():
        PIXELCNN.train(*resume(PIXELCNN, given), maps)
        return
    same = {name: getattr(options, name) for name in ("seed", "precision", "data")}
    PIXELCNN.train(PixelCNNOptions.of({**given, **same, "stage_one": str(folder)}), None, maps)


def code_metrics(log_probs: LogProbFunction, model, guide, images: Images) -> dict:
    """:func:`image_metrics`, the squared error of reconstructions and the codebook usage of a VQ-VAE.

    ``mean_squared_error`` is per pixel and channel, for intensities in [0, 1]. ``code_usage`` is the fraction of codes
    in use.
    """
    metrics = image_metrics(log_probs, model, guide, images)
    errors = torch.zeros((), dtype=torch.float64, device=images.pixels.device)
    for x in shard_batches(images):
        errors += (inspect.reconstruct(model, guide, x) - x).square().sum(dtype=torch.float64)
    counts = codebook_counts(guide, shard_batches(images), len(model.codebook))
    error = float(distributed.all_reduce(errors)) / (len(images) * math.prod(images.shape))
    return metrics | {"mean_squared_error": error, **codebook_usage(counts)}


def code_pictures(model, guide, images: Images, folder: Path) -> None:
    """Write usage.png, the frequency of each VQ-VAE code, and codes.png, images with their code maps."""
    counts = codebook_counts(guide, images.batches(), len(model.codebook))
    save_picture(plotting.histogram(counts.cpu().numpy(), "code", "positions"), folder / "usage.png")
    x = images.head(12)[:]
    rows = [x, inspect.reconstruct(model, guide, x)]
    maps = inspect.infer_codes(guide, x).unsqueeze(1) / max(1, len(counts) - 1)
    arrays = [row.clamp(0, 1).cpu().numpy() for row in (*rows, maps)]
    save_picture(plotting.image_rows(arrays, ["image", "p(x | z)", "codes"]), folder / "codes.png")


SYSTEM = VQVAESystem()
