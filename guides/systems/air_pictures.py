"""Pictures of AIR's inferred scenes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pplmodels import inspect, plotting
from pplmodels.data import Images
from pplmodels.metrics import scene_iou
from pplmodels.systems.pictures import save_picture

BATCH = 1000  # scenes that are inferred at once, or fewer if they are large
WORST = 10  # scenes in a picture of the worst


def scene_pictures(model, guide, scenes: Images, metrics: list[dict], folder: Path) -> None:
    """Write scenes.png (windows and reconstructions), samples.png (from the prior, by count) and curves.png."""
    save_picture(windows(scenes, inspect.infer_scenes(model, guide, scenes[:])), folder / "scenes.png")
    numbers = range(1, model.num_steps + 1)
    samples = [inspect.sample_scenes(model, len(scenes), n).clamp(0, 1).cpu().numpy() for n in numbers]
    save_picture(plotting.image_rows(samples, [f"p(x | n={n})" for n in numbers]), folder / "samples.png")
    groups = [
        ["elbo", "train_elbo"],
        ["count_accuracy", "all_parts_right"],
        ["kl/z_pres", "kl/z_where", "kl/z_what"],
    ]
    save_picture(plotting.curves(metrics, groups), folder / "curves.png")


def worst_pictures(model, guide, scenes: Images, folder: Path) -> None:
    """Write worst-bound.png and, if the boxes are known, worst-iou.png: the scenes of the lowest ELBO and mean IoU.

    The windows and the reconstructions are those of the posterior samples that the scenes were chosen by.
    """
    worst: dict[str, list[tuple[Tensor, Tensor, inspect.InferredScenes]]] = {}
    for indices in torch.arange(len(scenes), device="cpu").split(scenes.at_once(BATCH)):
        part = scenes.part(indices)
        view = inspect.infer_scenes(model, guide, part[:])
        scores = {"bound": view.elbo.cpu()}
        if part.boxes is not None:
            scores["iou"] = scene_iou(part.boxes, view.boxes, view.z_pres)
        for name, score in scores.items():
            lowest = score.argsort(stable=True)[:WORST]
            worst.setdefault(name, []).append((score[lowest], indices[lowest], view.part(lowest)))
    for name, found in worst.items():
        of_batches, places, views = (list(column) for column in zip(*found, strict=True))
        score = torch.cat(of_batches)
        lowest = score.argsort(stable=True)[:WORST]
        shown, view = scenes.part(torch.cat(places)[lowest]), inspect.InferredScenes.cat(views).part(lowest)
        notes = [f"{value:.4g}" for value in score[lowest].tolist()]
        save_picture(windows(shown, view, notes), folder / f"worst-{name}.png")


def windows(scenes: Images, view: inspect.InferredScenes, notes: Sequence[str] | None = None) -> Figure:
    """Scenes with their windows and true boxes, above the reconstructions."""
    return plotting.scenes_with_windows(
        view.scenes.cpu().numpy(),
        view.reconstruction.clamp(0, 1).cpu().numpy(),
        view.z_pres.cpu().numpy(),
        view.z_where.cpu().numpy(),
        None if scenes.counts is None else scenes.counts.cpu().numpy(),
        None if scenes.boxes is None else scenes.boxes.cpu().numpy(),
        notes,
    )
