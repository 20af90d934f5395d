"""What a script measures and draws of a trained pair: inspection on one side, pictures on the other."""

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

ASIDE = 1.0  # radians by which the other camera of a picture of solids has gone round the table
UNANIMOUS = 0.95  # share of scenes with the same extreme count that means collapse


def _batches(images: Images) -> Iterator[Tensor]:
    """This rank's share of some images that are to be measured."""
    return images.part(distributed.shard(len(images))).batches()


def scene_metrics(run: Callable[[Tensor], LogProbs], guide, scenes: Images) -> dict:
    """The bound split by site, the inferred counts and a word on collapse, and the accuracy where counts are known.

    ``run`` is :func:`pplmodels.infer.log_probs` of the pair, compiled or not. ``count_accuracy``, ``confusion`` and
    ``inferred_counts`` (shares of the scenes) are those of one sample of the guide a scene, ``count_accuracy_argmax``
    of the most probable count; ``decided_counts`` are the shares of scenes with n = 0..T likely steps. ``warning`` is
    there where nearly all scenes get no object, or nearly all that get one get T.
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
    """What is wrong with the shares of scenes that get n = 0..T objects, if they hardly differ."""
    none, every = float(decided[0]), float(decided[-1] / (1 - decided[0]))
    if none > UNANIMOUS:
        return f"collapsing: {none:.0%} of the scenes get no object, whatever they show."
    if len(decided) > 2 and every > UNANIMOUS:
        return (
            f"collapsing: of the scenes that get an object {every:.0%} get all {len(decided) - 1}, whatever they show."
        )
    return None


def table_metrics(run: Callable[[Tensor], LogProbs], guide, tables: TabletopScenes) -> dict:
    """:func:`scene_metrics` of pictures of solids, and how the likeliest solids match the true ones.

    The names are those of :func:`pplmodels.inspect.solid_metrics`.
    """
    found = [inspect.find_solids(guide, x) for x in _batches(tables)]
    gathered = [distributed.all_gather(torch.cat(parts)) for parts in zip(*map(astuple, found), strict=True)]
    matched = inspect.solid_metrics(inspect.true_solids(tables), inspect.Solids(*gathered))
    return scene_metrics(run, guide, tables) | matched


def held_out_metrics(run: Callable[[Tensor], LogProbs], guide, scenes: SceneSet) -> dict:
    """:func:`scene_metrics` of the held-out scenes, and some of them (``unseen_...``) of the unseen counts."""
    metrics = scene_metrics(run, guide, scenes.test)
    if scenes.unseen is not None:
        unseen = scene_metrics(run, guide, scenes.unseen)
        metrics |= {f"unseen_{name}": unseen[name] for name in ("elbo", "count_accuracy", "confusion")}
    return metrics


def gradient_health(svi: SVI, scenes: Images, batch_size: int) -> dict:
    """How noisy the gradient of AIR's discrete sites is.

    ``score_variance`` is that of the gradient of the layer that decides on going on, in (nats per image per unit)^2, of
    batches of ``batch_size`` as in training; ``baseline_explained`` the share of the costs' variance that the baseline
    predicts, where one is in use.
    """
    guide = svi.guide
    batch = scenes.head(batch_size)[:]
    health = {"score_variance": gradient_variance(svi, (batch,), list(guide.presence.parameters()))}
    if guide.baseline.observations > 0:
        health["baseline_explained"] = float(guide.baseline.explained_variance())
    return health


def image_metrics(run: Callable[[Tensor], LogProbs], model, guide, images: Images) -> dict:
    """The bound split by site, bits per dimension where the data are 8-bit levels, and how much of the codes is used.

    ``active_units`` (with several sites, of each: ``active_units/<site>``, the steps of a site added up), and for one
    code an image the estimates of :func:`pplmodels.infer.information`, of 1,000 images.
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
    """:func:`image_metrics`, the squared error of reconstructions and how many of a VQ-VAE's codes are in use.

    ``mean_squared_error`` is per pixel and channel, of intensities in [0, 1]; ``code_usage`` a share of all codes.
    """
    metrics, errors = image_metrics(run, model, guide, images), 0.0
    for x in _batches(images):
        errors += (inspect.reconstruct(model, guide, x) - x).square().sum(dtype=torch.float64)
    counts = codebook_counts(guide, _batches(images), len(model.codebook))
    error = float(distributed.all_reduce(errors)) / (len(images) * math.prod(images.shape))
    return metrics | {"mean_squared_error": error, **codebook_usage(counts)}


def map_metrics(run: Callable[[Tensor], LogProbs], model, guide, maps: Images) -> dict:
    """The log-probability of maps of whole numbers, in nats a map and a position.

    ``unigram_nats_per_code`` is what positions cost that know nothing of each other: the entropy of the values' shares.
    """
    metrics, _ = elbo_terms(run, _batches(maps))
    counts = distributed.all_reduce(sum(x.flatten().bincount(minlength=model.levels) for x in _batches(maps)))
    metrics["nats_per_code"] = -metrics["elbo"] / math.prod(model.map)
    return metrics | {"unigram_nats_per_code": math.log(codebook_usage(counts)["code_perplexity"])}


def code_pictures(model, guide, images: Images, folder: Path) -> None:
    """Write usage.png, how often each of a VQ-VAE's codes is used, and codes.png, maps of codes beside their images."""
    counts = codebook_counts(guide, images.batches(), len(model.codebook))
    save_picture(plotting.histogram(counts.cpu().numpy(), "code", "positions"), folder / "usage.png")
    x = images.head(12)[:]
    rows = [x, inspect.reconstruct(model, guide, x)]
    maps = inspect.infer_codes(guide, x).unsqueeze(1) / max(1, len(counts) - 1)
    arrays = [row.clamp(0, 1).cpu().numpy() for row in (*rows, maps)]
    save_picture(plotting.image_rows(arrays, ["image", "p(x | z)", "codes"]), folder / "codes.png")


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all. Raises :class:`pplmodels.errors.StorageError`."""
    atomic_write(path, lambda temporary: plotting.save(figure, temporary))


def last_slope(metrics: list[dict]) -> float | None:
    """Nats that the validation bound gained per 1,000 steps between the last two evaluations."""
    if len(metrics) < 2:
        return None
    before, last = metrics[-2:]
    return 1000 * (last["valid_elbo"] - before["valid_elbo"]) / (last["step"] - before["step"])


def level_bits(images: Images, nats: float) -> float | None:
    """A log-probability in nats an image as bits per dimension, where the images are read as 8-bit levels."""
    if images.reading.kind not in ("mass", "density"):
        return None
    return bits_per_dim(nats, images.shape, images.reading.kind == "density")


def image_pictures(model, guide, images: Images, metrics: list[dict], folder: Path) -> None:
    """Write curves.png, where there are metrics, and of images reconstructions.png and samples.png (from the prior).

    Where there is one code of several coordinates an image, also interpolations.png (between codes of images),
    manifold.png (a plane of codes) and prior.png (codes from the prior beside codes of images); where there are layers
    of codes, layers.png (images of which only the upper layers are kept, and the lower ones drawn anew).
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
        layers = list(codes)  # from the top down, as a guide samples them
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
    """Write curves.png, the bounds and the KL of each site while training, where there are metrics."""
    if not metrics:
        return
    names = list(metrics[-1])
    groups = [[name for name in names if name.endswith("_elbo")], [name for name in names if name.startswith("kl/")]]
    save_picture(plotting.curves(metrics, [group for group in groups if group]), folder / "curves.png")


def painting_pictures(model, guide, images: Images, folder: Path) -> None:
    """Write painting.png and painting.gif, images being painted again, and dreaming.gif, images from the prior."""
    x = images.part(torch.linspace(0, len(images) - 1, 8).long())[:]  # from all over: sets may be sorted by class
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
    """Write solids.png (what is found, from two sides), yaws.png (samples of turns, for each kind) and curves.png."""
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
