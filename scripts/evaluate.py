"""Rebuild a trained AIR pair from its run folder and measure it on held-out scenes again."""

import argparse
import json
from functools import partial

import torch
from train_air import scenes_of

from guides import AIRGuide
from pplmodels import AIR
from pplmodels.infer import log_probs
from pplmodels.report import scene_metrics, scene_pictures
from pplmodels.training import Run, cli


def main(argv: list[str] | None = None) -> None:
    """Parse, rebuild, evaluate, print."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--data-dir", metavar="DIR", help="where torchvision's data sets are (default: as in training)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is one")
    parser.add_argument("--seed", type=cli.natural_int, default=0, help="of the guide's samples")
    options = parser.parse_args(argv)
    device = cli.find_device(options.device)
    run = Run.open(options.run)
    trained = argparse.Namespace(**run.config)
    trained.data_dir = options.data_dir or trained.data_dir
    model, guide = (half.from_pretrained(run.folder).to(device) for half in (AIR, AIRGuide))
    test = scenes_of(trained).test.to(device)
    torch.manual_seed(options.seed)
    print(json.dumps(scene_metrics(partial(log_probs, model, guide), test, model.num_steps), indent=2))
    scene_pictures(model, guide, test.head(12), run.metrics, run.folder)
    print(f"pictures: {run.folder}")


if __name__ == "__main__":
    cli.run_script(main)
