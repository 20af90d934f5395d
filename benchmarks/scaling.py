"""Time the same training on one rank and on several ranks, interleaved, with the same global batch size."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyro
import torch

from guides import AIRGuide, MLPGuide
from pplmodels import AIR, MLPVAE, distributed
from pplmodels.data import scene_set
from pplmodels.infer import SVI, PerSite_ELBO, adam
from pplmodels.io import write_json
from pplmodels.machine import resolve_device
from pplmodels.training import cli
from pplmodels.training.options import Parser, positive_int
from pplmodels.training.run import describe_device, versions

RESULT = Path(__file__).parent.parent / "results" / "scaling.json"
WARM = 10  # untimed steps
LAST = 50  # steps over which the final loss is averaged
CASES = {"air": (64, 256), "vae": (512, 2048)}  # global batch sizes


def parser() -> Parser:
    """The script's options."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--ranks", type=positive_int, default=2, metavar="N", help="number of ranks to compare with one"
    )
    parser.add_argument("--steps", type=positive_int, default=300, help="steps per turn")
    parser.add_argument("--rounds", type=positive_int, default=3, help="turns per number of ranks")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto uses CUDA if available")
    parser.add_argument(
        "--turn", nargs=2, metavar=("CASE", "BATCH"), help="run a single turn; used internally with torchrun"
    )
    return parser


def take_turn(case: str, batch: int, steps: int, device: torch.device) -> dict[str, float]:
    """Train a pair on this rank's share of the data; returns seconds per step and the mean loss of the last steps."""
    pyro.set_rng_seed(0)
    if case == "air":
        x = scene_set("digits", num_train=4096, num_test=1, canvas=50, object_size=21.5).train
        model, guide = AIR(), AIRGuide()
    else:
        x = scene_set("digits", num_train=4096, num_test=1, canvas=28, object_size=13).train
        model, guide = MLPVAE(hidden_dims=(800, 800)), MLPGuide(hidden_dims=(800, 800))
    x, model, guide = x.to(device), model.to(device), guide.to(device)
    torch.manual_seed(distributed.rank())
    svi = SVI(model, guide, adam(model, guide, 1e-3), PerSite_ELBO(), clip_norm=100.0, compile=True)
    order = torch.Generator().manual_seed(0)
    losses, seconds = [], []
    for _ in range(steps):
        indices = torch.randint(len(x), (batch,), generator=order)[distributed.shard(batch)]
        images = x[indices.to(device)]
        if case == "vae":
            images = images.round()
        begun = time.perf_counter()
        losses.append(float(svi.step(images)))
        seconds.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(seconds[WARM:]), "loss": statistics.mean(losses[-LAST:])}


def turn_on(number: int, case: str, batch: int, options) -> dict[str, float]:
    """Run :func:`take_turn` on ``number`` ranks, which share the machine's cores."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    turn = [__file__, "--turn", case, str(batch), "--steps", str(options.steps), "--device", options.device]
    threads = max(1, (os.cpu_count() or 1) // number)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    answer = subprocess.run([sys.executable, *launcher, *turn], env=environment, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(answer.stderr)
    return json.loads(answer.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    """Run a single turn, or run turns on one and on several ranks alternately and write results/scaling.json."""
    options = parser().parse_args(argv)
    device = resolve_device(options.device)
    if options.turn:
        found = take_turn(options.turn[0], int(options.turn[1]), options.steps, device)
        if distributed.rank() == 0:
            print(json.dumps(found))
        return
    rows = []
    for case, batches in CASES.items():
        for batch in batches:
            turns = {number: [] for number in (1, options.ranks)}
            for _ in range(options.rounds):
                for number, found in turns.items():
                    found.append(turn_on(number, case, batch, options))
            one, several = (statistics.median(turn["seconds"] for turn in found) for found in turns.values())
            losses = [statistics.mean(turn["loss"] for turn in found) for found in turns.values()]
            row = {"pair": case, "images a step": batch, "ranks": options.ranks}
            row |= {"one rank, ms": 1000 * one, "ranks, ms": 1000 * several, "throughput ratio": one / several}
            rows.append(row | {"one rank, loss": losses[0], "ranks, loss": losses[1]})
            print(json.dumps(rows[-1]))
    card = {"device": describe_device(device), "versions": versions(), "steps": options.steps, "rows": rows}
    card["command"] = " ".join(["python", "benchmarks/scaling.py", *(argv or sys.argv[1:])])
    write_json(RESULT, card)


if __name__ == "__main__":
    cli.run_script(main)
