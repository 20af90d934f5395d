"""What a script measures and draws of a trained pair: inspection on one side, pictures on the other."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pplmodels import inspect, plotting
from pplmodels.data import Images
from pplmodels.infer.bounds import LogProbs, elbo_terms

BATCH = 500  # images evaluated at a time


def scene_metrics(run: Callable[[Tensor], LogProbs], scenes: Images, most_inferred: int) -> dict:
    """The bound split by site and, where the true counts are known, count accuracy and confusion; one guide sample.

    ``run`` is :func:`pplmodels.infer.log_probs` of a pair, compiled or not; ``most_inferred`` is its number of steps.
    """
    metrics, inferred = elbo_terms(run, scenes.batches(BATCH), inspect.count_objects)
    if scenes.counts is not None:
        metrics |= inspect.count_metrics(scenes.counts.cpu(), inferred.cpu(), most_inferred)
    return metrics


def scene_pictures(model, guide, scenes: Images, metrics: list[dict], folder: Path) -> None:
    """Write scenes.png (windows and reconstructions), samples.png (from the prior, by count) and curves.png."""
    view = inspect.view_scenes(model, guide, scenes[:])
    arrays = [tensor.cpu().numpy() for tensor in (view.scenes, view.reconstruction, view.z_pres, view.z_where)]
    counts = None if scenes.counts is None else scenes.counts.cpu().numpy()
    plotting.save(plotting.scenes_with_windows(*arrays, counts), folder / "scenes.png")
    numbers = range(1, model.num_steps + 1)
    samples = [inspect.sample_scenes(model, len(scenes), n).clamp(0, 1).cpu().numpy() for n in numbers]
    plotting.save(plotting.image_rows(samples, [f"p(x | n={n})" for n in numbers]), folder / "samples.png")
    groups = [["elbo", "train_elbo"], ["count_accuracy"], ["kl/z_pres", "kl/z_where", "kl/z_what"]]
    plotting.save(plotting.curves(metrics, groups), folder / "curves.png")
