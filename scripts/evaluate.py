"""Rebuild a trained AIR pair from its run folder and measure it on held-out scenes again."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor
from train_air import GUIDES, parts_of, scenes_of

from guides import AIRGuide
from pplmodels import AIR, inspect
from pplmodels.files import replace_file
from pplmodels.infer import SVI, SummedOut_ELBO, adam, compiled_log_probs, gradient_variance, importance_weighted
from pplmodels.report import BATCH, held_out_metrics, scene_pictures
from pplmodels.training import Run, cli


def main(argv: list[str] | None = None) -> None:
    """Parse, rebuild, evaluate, print."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--data-dir", metavar="DIR", help="where torchvision's data sets are (default: as in training)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is one")
    parser.add_argument("--seed", type=cli.natural_int, default=0, help="of the guide's samples")
    parser.add_argument(
        "--iw-samples", type=cli.natural_int, default=0, metavar="K", help="also the importance-weighted bound"
    )
    parser.add_argument("--iw-images", type=cli.positive_int, metavar="N", help="of the first N scenes only")
    parser.add_argument(
        "--gradient-samples", type=cli.natural_int, default=0, metavar="R", help="also the estimators' variances"
    )
    parser.add_argument("--paths", type=cli.positive_int, default=1, help="samples a scene for the count posterior")
    options = parser.parse_args(argv)
    device = cli.find_device(options.device)
    run = Run.open(options.run)
    trained = argparse.Namespace(**run.config)
    trained.data_dir = options.data_dir or trained.data_dir
    model = AIR.from_pretrained(run.folder).to(device)
    guide = GUIDES[trained.guide].from_pretrained(run.folder, **parts_of(model, trained)).to(device)
    scenes = scenes_of(trained).to(device)
    bound = compiled_log_probs(model, guide, fallback=True)
    torch.manual_seed(options.seed)
    metrics = held_out_metrics(bound, guide, scenes)
    batches = scenes.test.batches(BATCH)
    arrays = {"count_posterior": torch.cat([inspect.count_posterior(guide, x, options.paths) for x in batches])}
    if options.iw_samples:
        batches = scenes.test.head(options.iw_images or len(scenes.test)).batches(BATCH)
        arrays["iw_bound"] = iw_bound = importance_weighted(bound, batches, options.iw_samples)
        metrics |= {"iw_samples": options.iw_samples, "iw_images": len(iw_bound), "iw_bound": float(iw_bound.mean())}
        metrics["iw_bound_standard_error"] = float(iw_bound.std() / len(iw_bound) ** 0.5)
    if options.gradient_samples:
        batch = scenes.test.head(trained.batch_size)[:]
        metrics |= gradient_variances(model, guide, batch, options.gradient_samples)
    text = json.dumps(metrics, indent=2)
    arrays = {name: array.cpu().numpy() for name, array in arrays.items()}
    replace_file(run.folder / "evaluation.json", lambda path: path.write_text(text + "\n"))
    replace_file(run.folder / "evaluation.npz", lambda path: _savez(path, arrays))
    scene_pictures(model, guide, scenes.test.head(12), run.metrics, run.folder)
    print(text)
    print(f"pictures, and arrays with a row a scene (evaluation.npz): {run.folder}")


def gradient_variances(model: AIR, guide: AIRGuide, batch: Tensor, repeats: int) -> dict[str, float]:
    """Of each estimator, for the layer that decides on going on and for the whole guide, without normalisation."""
    learned = {"presence": list(guide.presence.parameters())}
    learned["guide"] = [p for name, p in guide.named_parameters() if not name.startswith("baseline.")]
    variances = {}
    for name, elbo in (("reinforce", TraceGraph_ELBO()), ("summed-out", SummedOut_ELBO())):
        svi = SVI(model, guide, adam(model, guide, lr=0.0), elbo, compile="auto")
        for part, parameters in learned.items():
            variances[f"gradient_variance/{name}/{part}"] = gradient_variance(svi, (batch,), parameters, repeats)
    return variances


def _savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # a path would get an ending
        np.savez(file, **arrays)


if __name__ == "__main__":
    cli.run_script(main)
