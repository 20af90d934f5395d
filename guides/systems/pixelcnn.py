"""A PixelCNN on the codes of a trained VQ-VAE, or on the pixels of gray images."""

import hashlib
import math
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from pplmodels import VQVAE, GatedPixelCNN, PixelCNN, distributed, inspect, plotting
from pplmodels.data import Images, ValidatedImageSet, load_images
from pplmodels.data.transforms import GRID_TRANSFORMS
from pplmodels.errors import InputError
from pplmodels.io import PAIR, newest_run
from pplmodels.metrics import codebook_usage, elbo_terms
from pplmodels.metrics import log_probs as pair_log_probs
from pplmodels.registry import load_pair
from pplmodels.systems import (
    ImageOptions,
    LogProbFunction,
    Pair,
    ValidatedSystem,
    find_system,
)
from pplmodels.systems.command_line import stored_options
from pplmodels.systems.images import level_bits, say_binarised
from pplmodels.systems.options import Steps, by_data
from pplmodels.systems.pictures import curves_picture, save_picture
from pplmodels.systems.system import shard_batches
from pplmodels.systems.validated import Patience
from pplmodels.training import Run
from pplmodels.training.options import OddInt, Option, PositiveInt, Switch

from ..pixelcnn import EmptyGuide
from ..vq_vae import VQGuide

STEPS = {"digits": 600}
SAMPLES = 48
LEVELS = {"bits": 2, "levels": 256}


class PixelCNNOptions(ImageOptions):
    """The options of the PixelCNN."""

    steps: Steps = by_data(STEPS, 20_000)
    patience: Patience = 3  # a prior overfits small training sets
    stage_one: Annotated[str | None, Option("run of a VQ-VAE (default: pixels of --data)", "data", "RUN", flag="")] = (
        None
    )
    gated: Annotated[
        Switch,
        Option(
            "two stacks of gated layers without a blind spot, instead of residual blocks of masked convolutions",
            "model",
        ),
    ] = True
    channels: Annotated[PositiveInt, Option("number of channels", "model", "N")] = 64
    layers: Annotated[PositiveInt, Option("number of layers or blocks", "model", "N")] = 10
    size: Annotated[OddInt, Option("kernel size of the convolutions", "model")] = 7
    embedding: Annotated[PositiveInt, Option("embedding size of a value", "model", "N")] = 64
    hidden: Annotated[PositiveInt, Option("channels before the logits", "model", "N")] = 512
    pixels: Annotated[
        Literal["bits", "levels"],
        Option("bits: pixels are 1 above one half; levels: pixels have 256 values", "model"),
    ] = "bits"


@dataclass(frozen=True)
class StageOne:
    """A trained VQ-VAE, in evaluation mode and without gradients, and its images."""

    model: VQVAE
    guide: VQGuide
    images: ValidatedImageSet


@dataclass(frozen=True)
class Maps(ValidatedImageSet):
    """Integer maps ``(N, H, W)`` with values below ``levels``, and the VQ-VAE if they are codes of one."""

    levels: int = 2
    first: StageOne | None = None


class PixelCNNSystem(ValidatedSystem[PixelCNNOptions, Maps]):
    """Trains :class:`pplmodels.PixelCNN` or :class:`pplmodels.GatedPixelCNN`, which have no latents."""

    name = "pixelcnn"
    description = "Train a PixelCNN on the codes of a trained VQ-VAE, or on the pixels of gray images."
    options_class = PixelCNNOptions
    recorded = ("image", "codebook")

    def prepare(self, given: dict[str, Any]) -> dict[str, Any]:
        """The data of codes are those of their VQ-VAE."""
        if not given.get("stage_one"):
            return given
        folder = newest_run(given["stage_one"], PAIR)
        return {**given, "stage_one": str(folder), "data": _stage_one_options(folder).data}

    def load(self, options: PixelCNNOptions) -> Maps:
        """The VQ-VAE's codes, each inferred once, or the pixels of gray images."""
        if options.stage_one is not None:
            return maps_of(stage_one(options.stage_one, options.torch_device()))
        images = load_images(options.data, options.data_dir, **options.loading()).with_validation(options.valid)
        if images.train.shape[0] != 1:
            raise InputError(f"{options.data} has color images, but only gray images can be modeled.")
        say_binarised(images.train, options.pixels)
        device = options.torch_device()
        maps = images.map(lambda part: part.with_transform(GRID_TRANSFORMS[options.pixels]).to(device))
        return Maps(maps.train, maps.test, maps.valid, LEVELS[options.pixels])

    def facts(self, options: PixelCNNOptions, data: Maps) -> dict[str, Any]:
        """The shape of the maps and, for codes, the hash of their codebook."""
        codebook = {} if data.first is None else {"codebook": _hash(data.first.model)}
        return {**super().facts(options, data), **codebook}

    def check_data(self, options: PixelCNNOptions, data: Maps, run: Run) -> None:
        """Also raise an ``InputError`` for codes of another codebook."""
        if data.first is not None and run.config.get("codebook") != _hash(data.first.model):
            raise InputError(f"{run.folder} was trained with another codebook than that of {options.stage_one}.")
        super().check_data(options, data, run)

    def classes(self, options: PixelCNNOptions) -> tuple[type, ...]:
        """The classes of model and guide. The file of ``--import`` may instead define classes of the VQ-VAE."""
        return GatedPixelCNN if options.gated else PixelCNN, EmptyGuide, VQVAE, VQGuide

    def build(self, options: PixelCNNOptions, data: Maps, model_class: Any, guide_class: Any) -> Pair:
        """A new pair."""
        sizes = {name: getattr(options, name) for name in ("channels", "layers", "size", "embedding", "hidden")}
        return model_class(grid=data.train.shape[-2:], levels=data.levels, **sizes), guide_class()

    def metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, images: Images) -> dict[str, Any]:
        """:func:`map_metrics` of the maps."""
        return map_metrics(log_probs, model, images)

    def held_out_metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, data: Maps) -> dict[str, Any]:
        """The metrics of the held-out maps and, for codes, the ELBO of the test images under this prior."""
        metrics = self.metrics(log_probs, model, guide, data.test)
        if data.first is None:
            return metrics
        first = data.first
        first.model.use_prior(model)
        terms, _ = elbo_terms(partial(pair_log_probs, first.model, first.guide), shard_batches(first.images.test))
        first.model.use_prior(None)
        metrics["image_elbo"] = terms["elbo"]
        if (per_dim := level_bits(first.images.test, terms["elbo"])) is not None:
            metrics["image_bits_per_dim"] = per_dim
        return metrics

    def plot(self, model: Any, guide: Any, data: Maps, run: Run) -> None:
        """Curves, and samples under the learned prior and, for codes, under the uniform prior."""
        curves_picture(run.metrics, run.folder)
        if data.first is None:
            pictures = {"samples": inspect.sample(model, SAMPLES).unsqueeze(1) / (model.levels - 1)}
        else:
            pictures = {"samples-uniform": inspect.sample_means(data.first.model, SAMPLES)}
            data.first.model.use_prior(model)
            pictures["samples"] = inspect.sample_means(data.first.model, SAMPLES)
            data.first.model.use_prior(None)
        for name, images in pictures.items():
            rows = images.clamp(0, 1).cpu().numpy().reshape(-1, 12, *images.shape[1:])
            save_picture(plotting.image_rows(rows, [""] * len(rows)), run.folder / f"{name}.png")


def stage_one(folder: str | Path, device: torch.device, images: ValidatedImageSet | None = None) -> StageOne:
    """The VQ-VAE of a run and its ``images``, which are loaded if they are not given."""
    model, guide = (module.requires_grad_(False).to(device) for module in load_pair(folder))
    if not isinstance(model, VQVAE) or not isinstance(guide, VQGuide):
        raise InputError(f"{folder} does not contain a VQ-VAE.")
    if images is None:
        images = find_system("vq-vae").load(_stage_one_options(folder).replaced(device=device.type))
    return StageOne(model, guide, images)


def _stage_one_options(folder: str | Path) -> ImageOptions:
    run = Run.open(folder)
    if run.config.get("system") != "vq-vae":
        raise InputError(f"{folder} is not the run of a VQ-VAE.")
    return stored_options(find_system("vq-vae"), run)


def maps_of(first: StageOne) -> Maps:
    """The codes of all images of a VQ-VAE."""
    maps = first.images.map(lambda part: Images(_codes(first.guide, part), transform=GRID_TRANSFORMS["codes"]))
    return Maps(maps.train, maps.test, maps.valid, len(first.model.codebook), first)


@torch.no_grad()
def _codes(guide: VQGuide, images: Images) -> Tensor:
    """The codes of all images, int16 ``(N, H/4, W/4)``."""
    return torch.cat([inspect.infer_codes(guide, x).to(torch.int16) for x in images.batches()])


def _hash(model: VQVAE) -> str:
    return hashlib.sha256(model.codebook.vectors.detach().cpu().numpy().tobytes()).hexdigest()


def map_metrics(log_probs: LogProbFunction, model, maps: Images) -> dict:
    """The log-probability of integer maps, in nats per map and per position.

    ``unigram_nats_per_code`` is the cost of independent positions: the entropy of the frequencies of the values.
    """
    metrics, _ = elbo_terms(log_probs, shard_batches(maps))
    counts = reduce(torch.add, (x.flatten().bincount(minlength=model.levels) for x in shard_batches(maps)))
    usage = codebook_usage(distributed.all_reduce(counts))
    metrics["nats_per_code"] = -metrics["elbo"] / math.prod(model.grid)
    return metrics | {"unigram_nats_per_code": math.log(usage["code_perplexity"])}


SYSTEM = PixelCNNSystem()
