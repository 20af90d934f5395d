"""Metrics and figures of trained pairs."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pplmodels import distributed, inspect, plotting
from pplmodels.data import Images, SceneSet, TabletopScenes
from pplmodels.infer import SVI
from pplmodels.io import atomic_write
from pplmodels.metrics import (
    active_units,
    bits_per_dim,
    codebook_counts,
    codebook_usage,
    elbo_surgery,
    elbo_terms,
    gradient_variance,
    posterior_mean_variances,
)
from pplmodels.metrics.bounds import LogProbs, without_step
from pplmodels.nn.renderer import KINDS, Renderer

ASIDE = 1.0  # azimuth in radians of the second camera in figures of solids
UNANIMOUS = 0.95  # fraction of scenes with the same extreme count that is reported as a collapse


def _batches(images: Images) -> Iterator[Tensor]:
    """Batches of this rank's share of the images."""
    return images.part(distributed.shard(len(images))).batches()


def scene_metrics(run: Callable[[Tensor], LogProbs], guide, scenes: Images) -> dict:
    """The ELBO split by site, the inferred counts and, if the true counts are known, the count accuracy.

    ``run`` is :func:`pplmodels.metrics.log_probs` of the pair, compiled or not. ``count_accuracy``, ``confusion`` and
    ``inferred_counts`` (fractions of the scenes) are computed from one posterior sample per scene,
    ``count_accuracy_argmax`` from the most probable count. ``decided_counts`` are the fractions of scenes with
    n = 0..T likely steps. ``warning`` is present if almost all scenes get no object, or if almost all scenes with an
    object get T.
    """
    metrics, inferred = elbo_terms(run, _batches(scenes), inspect.count_objects)
    posterior = distributed.all_gather(torch.cat([inspect.count_posterior(guide, x) for x in _batches(scenes)]))
    counts = posterior.shape[1]
    metrics["inferred_counts"] = (inferred.bincount(minlength=counts) / len(inferred)).tolist()
    decided = inspect.decided_counts(posterior).bincount(minlength=counts) / len(posterior)
    metrics["decided_counts"] = decided.tolist()
    if warning := _collapse(decided):
        metrics["warning"] = warning
    if scenes.counts is not None:
        metrics |= inspect.count_metrics(scenes.counts, inferred, counts - 1)
        metrics["count_accuracy_argmax"] = float((posterior.argmax(1) == scenes.counts).double().mean())
    return metrics


def _collapse(decided: Tensor) -> str | None:
    """A warning if the fractions of scenes with n = 0..T objects indicate a collapse."""
    none, every = float(decided[0]), float(decided[-1] / (1 - decided[0]))
    if none > UNANIMOUS:
        return f"collapsing: {none:.0%} of the scenes get no object, whatever they show."
    if len(decided) > 2 and every > UNANIMOUS:
        return (
            f"collapsing: of the scenes that get an object {every:.0%} get all {len(decided) - 1}, whatever they show."
        )
    return None


def table_metrics(run: Callable[[Tensor], LogProbs], guide, tables: TabletopScenes) -> dict:
    """:func:`scene_metrics` of scenes of solids, and the accuracy of the most probable solids.

    The names of the latter are those of :func:`pplmodels.inspect.solid_metrics`.
    """
    found = [inspect.find_solids(guide, x) for x in _batches(tables)]
    gathered = [distributed.all_gather(torch.cat(parts)) for parts in zip(*map(astuple, found), strict=True)]
    matched = inspect.solid_metrics(inspect.true_solids(tables), inspect.Solids(*gathered))
    return scene_metrics(run, guide, tables) | matched


def held_out_metrics(run: Callable[[Tensor], LogProbs], guide, scenes: SceneSet) -> dict:
    """:func:`scene_metrics` of the held-out scenes and, named ``unseen_...``, some metrics of the unseen counts."""
    metrics = scene_metrics(run, guide, scenes.test)
    if scenes.unseen is not None:
        unseen = scene_metrics(run, guide, scenes.unseen)
        metrics |= {f"unseen_{name}": unseen[name] for name in ("elbo", "count_accuracy", "confusion")}
    return metrics


def gradient_health(svi: SVI, scenes: Images, batch_size: int) -> dict:
    """The gradient noise of AIR's discrete sites.

    ``score_variance`` is the gradient variance of the presence layer in (nats per image per unit)^2, for batches of
    ``batch_size`` as in training. ``baseline_explained`` is the fraction of the costs' variance explained by the
    baseline, if one is used.
    """
    guide = svi.guide
    batch = scenes.head(batch_size)[:]
    health = {"score_variance": gradient_variance(svi, (batch,), list(guide.presence.parameters()))}
    if guide.baseline.observations > 0:
        health["baseline_explained"] = float(guide.baseline.explained_variance())
    return health


def image_metrics(run: Callable[[Tensor], LogProbs], model, guide, images: Images) -> dict:
    """The ELBO split by site, bits per dimension for 8-bit images, and measures of latent usage.

    These are ``active_units``, or ``active_units/<site>`` summed over steps if there are several sites. Models with a
    single latent per image also get the estimates of :func:`pplmodels.metrics.elbo_surgery`, from 1,000 images.
    """
    metrics, _ = elbo_terms(run, _batches(images))
    if (bits := level_bits(images, metrics["elbo"])) is not None:
        metrics["bits_per_dim"] = bits
    units = active_units(guide, _batches(images))
    active = Counter()
    for site, number in units.items():
        active[without_step(site)] += number
    if len(active) != 1:
        return metrics | {f"active_units/{site}": number for site, number in active.items()}
    metrics["active_units"] = active.total()
    some = images.head(images.at_once(1000))[:]
    return metrics | (elbo_surgery(model, guide, some, *units) if len(units) == 1 else {})


def code_metrics(run: Callable[[Tensor], LogProbs], model, guide, images: Images) -> dict:
    """:func:`image_metrics`, the squared error of reconstructions and the codebook usage of a VQ-VAE.

    ``mean_squared_error`` is per pixel and channel, for intensities in [0, 1]. ``code_usage`` is the fraction of codes
    in use.
    """
    metrics, errors = image_metrics(run, model, guide, images), 0.0
    for x in _batches(images):
        errors += (inspect.reconstruct(model, guide, x) - x).square().sum(dtype=torch.float64)
    counts = codebook_counts(guide, _batches(images), len(model.codebook))
    error = float(distributed.all_reduce(errors)) / (len(images) * math.prod(images.shape))
    return metrics | {"mean_squared_error": error, **codebook_usage(counts)}


def map_metrics(run: Callable[[Tensor], LogProbs], model, guide, maps: Images) -> dict:
    """The log-probability of integer maps, in nats per map and per position.

    ``unigram_nats_per_code`` is the cost of independent positions: the entropy of the frequencies of the values.
    """
    metrics, _ = elbo_terms(run, _batches(maps))
    counts = distributed.all_reduce(sum(x.flatten().bincount(minlength=model.levels) for x in _batches(maps)))
    metrics["nats_per_code"] = -metrics["elbo"] / math.prod(model.map)
    return metrics | {"unigram_nats_per_code": math.log(codebook_usage(counts)["code_perplexity"])}


def code_pictures(model, guide, images: Images, folder: Path) -> None:
    """Write usage.png, the frequency of each VQ-VAE code, and codes.png, images with their code maps."""
    counts = codebook_counts(guide, images.batches(), len(model.codebook))
    save_picture(plotting.histogram(counts.cpu().numpy(), "code", "positions"), folder / "usage.png")
    x = images.head(12)[:]
    rows = [x, inspect.reconstruct(model, guide, x)]
    maps = inspect.infer_codes(guide, x).unsqueeze(1) / max(1, len(counts) - 1)
    arrays = [row.clamp(0, 1).cpu().numpy() for row in (*rows, maps)]
    save_picture(plotting.image_rows(arrays, ["image", "p(x | z)", "codes"]), folder / "codes.png")


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure atomically as PNG. Raises :class:`pplmodels.errors.StorageError`."""
    atomic_write(path, lambda temporary: plotting.save(figure, temporary))


def last_slope(metrics: list[dict]) -> float | None:
    """The increase of the validation bound between the last two evaluations, in nats per 1,000 steps."""
    if len(metrics) < 2:
        return None
    before, last = metrics[-2:]
    return 1000 * (last["valid_elbo"] - before["valid_elbo"]) / (last["step"] - before["step"])


def level_bits(images: Images, nats: float) -> float | None:
    """A log-probability in nats per image as bits per dimension, or None if the images are not 8-bit levels."""
    if images.reading.kind not in ("mass", "density"):
        return None
    return bits_per_dim(nats, images.shape, images.reading.kind == "density")


def image_pictures(model, guide, images: Images, metrics: list[dict], folder: Path) -> None:
    """Write curves.png, if there are metrics, and for images reconstructions.png and samples.png (from the prior).

    Models with a single latent of several dimensions per image also get interpolations.png (between latents of
    images), manifold.png (a plane of latents) and prior.png (prior samples next to posterior samples). Models with
    several latent layers get layers.png (images whose lower layers are resampled).
    """
    curves_picture(metrics, folder)
    if len(images.shape) != 3:
        return
    x = images.head(12)[:]
    half = len(x) // 2
    rows = {
        "reconstructions": ([x, inspect.reconstruct(model, guide, x)], ["image", "p(x | z)"]),
        "samples": (inspect.sample_means(model, 48).unflatten(0, (4, 12)), [""] * 4),
    }
    codes = posterior_mean_variances(guide, [x])
    sites = [site for site, variances in codes.items() if len(variances) > 1]
    if len(sites) == 1 and half > 0:
        between = inspect.interpolate(model, guide, x[:half], x[half : 2 * half], 12, sites[0])
        rows["interpolations"] = between, [""] * half
    if len({without_step(site) for site in codes}) > 1:
        layers = list(codes)  # top-down, in the guide's sampling order
        kept = [layers[:number] for number in range(len(layers), -1, -1)]
        labels = ["image", "all kept", *(f"new to {layer}" for layer in reversed(layers))]
        rows["layers"] = [x, *(inspect.resample(model, guide, x, keep) for keep in kept)], labels
    for name, (images_, labels) in rows.items():
        figure = plotting.image_rows([row.clamp(0, 1).cpu().numpy() for row in images_], labels)
        save_picture(figure, folder / f"{name}.png")
    if len(sites) == 1:
        plane, coordinates = inspect.manifold(model, guide, images.head(images.at_once(1000))[:], site=sites[0])
        labels = tuple(f"coordinate {number}" for number in coordinates)
        save_picture(plotting.image_plane(plane.clamp(0, 1).cpu().numpy(), labels), folder / "manifold.png")
        clouds, _ = inspect.code_clouds(model, guide, images.head(images.at_once(1000))[:], sites[0])
        save_picture(
            plotting.clouds({name: cloud.cpu().numpy() for name, cloud in clouds.items()}), folder / "prior.png"
        )


def curves_picture(metrics: list[dict], folder: Path) -> None:
    """Write curves.png, the bounds and the KL of each site during training, if there are metrics."""
    if not metrics:
        return
    names = list(metrics[-1])
    groups = [[name for name in names if name.endswith("_elbo")], [name for name in names if name.startswith("kl/")]]
    save_picture(plotting.curves(metrics, [group for group in groups if group]), folder / "curves.png")


def painting_pictures(model, guide, images: Images, folder: Path) -> None:
    """Write painting.png and painting.gif, the steps of reconstructions, and dreaming.gif, the steps of samples."""
    x = images.part(torch.linspace(0, len(images) - 1, 8).long())[:]  # datasets may be sorted by class
    again, dreamt = inspect.reconstruction_steps(model, guide, x), inspect.generation_steps(model, len(x))
    for name, painting in (("painting", again), ("dreaming", dreamt)):
        arrays = _arrays(painting)
        atomic_write(folder / f"{name}.gif", lambda path, arrays=arrays: plotting.canvas_gif(path, *arrays))
    canvases, reading, writing = _arrays(again)
    shown = np.unique(np.linspace(0, len(canvases) - 2, 10).round().astype(int))
    windows = (None if where is None else where[shown] for where in (reading, writing))
    save_picture(plotting.painting_rows(x.cpu().numpy(), canvases[1:][shown], *windows), folder / "painting.png")


def _arrays(painting: inspect.CanvasSteps) -> list[np.ndarray | None]:
    tensors = (painting.canvases.clamp(0, 1), painting.reading, painting.writing)
    return [None if tensor is None else tensor.cpu().numpy() for tensor in tensors]


def scene_pictures(model, guide, scenes: Images, metrics: list[dict], folder: Path) -> None:
    """Write scenes.png (windows and reconstructions), samples.png (from the prior, by count) and curves.png."""
    view = inspect.view_scenes(model, guide, scenes[:])
    drawn = view.reconstruction.clamp(0, 1)
    arrays = [tensor.cpu().numpy() for tensor in (view.scenes, drawn, view.z_pres, view.z_where)]
    counts = None if scenes.counts is None else scenes.counts.cpu().numpy()
    save_picture(plotting.scenes_with_windows(*arrays, counts), folder / "scenes.png")
    numbers = range(1, model.num_steps + 1)
    samples = [inspect.sample_scenes(model, len(scenes), n).clamp(0, 1).cpu().numpy() for n in numbers]
    save_picture(plotting.image_rows(samples, [f"p(x | n={n})" for n in numbers]), folder / "samples.png")
    groups = [["elbo", "train_elbo"], ["count_accuracy"], ["kl/z_pres", "kl/z_where", "kl/z_what"]]
    save_picture(plotting.curves(metrics, groups), folder / "curves.png")


def table_pictures(model, guide, tables: TabletopScenes, metrics: list[dict], folder: Path) -> None:
    """Write solids.png (inferred solids from two views), yaws.png (posterior samples of yaws) and curves.png."""
    shown = tables.head(12)
    found = inspect.find_solids(guide, shown[:])
    aside = Renderer(shown.shape[1:], azimuth=ASIDE).to(shown.pixels.device)
    rows = [
        shown[:],
        inspect.render_solids(model, found),
        inspect.render_solids(model, found, aside),
        inspect.render_solids(model, inspect.true_solids(shown), aside),
    ]
    labels = ["picture", "inferred", "from aside", "true, from aside"]
    save_picture(plotting.image_rows([row.clamp(0, 1).cpu().numpy() for row in rows], labels), folder / "solids.png")
    alone = (tables.counts == 1).nonzero().squeeze(1)
    kinds = tables.kind[alone, 0]
    chosen = torch.cat([alone[kinds == kind][:2] for kind in range(len(KINDS))])
    if len(chosen):
        examples = tables.part(chosen)
        yaws = inspect.sample_yaws(model, guide, examples[:]).cpu().numpy()
        arrays = examples[:].cpu().numpy(), yaws, examples.yaw[:, 0].cpu().numpy()
        titles = [KINDS[kind] for kind in examples.kind[:, 0]]
        save_picture(plotting.turns(*arrays, titles), folder / "yaws.png")
    groups = [["elbo", "train_elbo"], ["count_accuracy", "kind_accuracy"], ["place_error_percent", "yaw_error_degrees"]]
    save_picture(plotting.curves(metrics, groups), folder / "curves.png")
