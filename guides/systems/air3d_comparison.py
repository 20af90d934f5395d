"""A comparison of the guide of a trained AIR3D run with a supervised network and with search on held-out images.

The supervised network has the guide's architecture and is trained on the true latents. The search optimizes the
latents of each image separately from random starts, under the same model. Accuracy and milliseconds per image go into
one table, which ``tools/result_cards.py tables`` inserts into the page.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tqdm import tqdm

from pplmodels import inspect
from pplmodels.data import TabletopScenes
from pplmodels.distributions.wrapped_normal import wrapped
from pplmodels.errors import InputError
from pplmodels.infer import Annealed, cosine
from pplmodels.inspect import Solids
from pplmodels.io import PAIR, newest_run, write_json
from pplmodels.nn.renderer import KINDS, PERIODS
from pplmodels.registry import load_pair
from pplmodels.rng import seed_all
from pplmodels.systems.command_line import stored_options
from pplmodels.systems.options import Device, Seeded
from pplmodels.training import Run
from pplmodels.training.options import Option, OptionModel, PositiveInt, parser_of
from pplmodels.training.run import environment

from ..air3d import AIR3DGuide
from .air3d import SYSTEM as AIR3D_SYSTEM

REFINED = (5, 20)  # gradient steps after the guide
METRICS = (
    "count_accuracy_argmax",
    "kind_recall",
    "kind_accuracy",
    "place_error_percent",
    "place_error_percent_p90",
    "yaw_error_degrees",
    "yaw_error_degrees_p90",
)
NOWHERE = 1e3  # distance of a solid that is absent or has already been found


class AIR3DComparisonOptions(OptionModel):
    """The options of the comparison."""

    run: Annotated[str, Option("run folder of train_air3d.py", metavar="RUN", flag="")]
    out: Annotated[str | None, Option("output file (default: RUN/comparison.json)", metavar="FILE.json")] = None
    pictures: Annotated[PositiveInt, Option("number of held-out images")] = 100
    starts: Annotated[PositiveInt, Option("random starts of the search per image")] = 32
    search_steps: Annotated[tuple[PositiveInt, ...], Option("gradient steps of the search", metavar="N")] = (50, 200)
    steps: Annotated[PositiveInt | None, Option("steps of supervised training (default: the run's)")] = None
    seed: Seeded = 0
    device: Device = "auto"


@dataclass(frozen=True)
class Method:
    """A way to infer the solids of images ``x (B, 3, H, W)``, which gets at most ``max_batch`` images at a time."""

    name: str
    infer: Callable[[Tensor], Solids]
    max_batch: int = 64


def main(argv: Sequence[str] | None = None) -> None:
    """Compare as the words of the command line say."""
    description = "Compare the guide of a trained AIR3D run with a supervised network and with search."
    compare(AIR3DComparisonOptions.of(vars(parser_of(AIR3DComparisonOptions, description).parse_args(argv))))


def compare(options: AIR3DComparisonOptions) -> None:
    """Load the pair, train the supervised network, infer with each method and write the table."""
    run = Run.open(newest_run(options.run, PAIR))
    if run.config.get("system") != AIR3D_SYSTEM.name:
        raise InputError(f"{options.run} is not a run of train_air3d.py.")
    trained = stored_options(AIR3D_SYSTEM, run).replaced(device=options.device)
    tables = AIR3D_SYSTEM.load(trained)
    AIR3D_SYSTEM.check_data(trained, tables, run)
    device = tables.test.pixels.device
    model, guide = (module.to(device) for module in load_pair(run.folder))
    test = tables.test.head(options.pictures)
    true = inspect.true_solids(test)
    seed_all(options.seed)
    sizes = {"image": model.renderer.size, "num_steps": model.num_steps}
    twin = AIR3DGuide(**sizes, channels=trained.channels, hidden_dim=trained.hidden).to(device)
    steps = options.steps or trained.steps + (2 * trained.first_steps if model.num_steps > 1 else 0)
    seconds = train_supervised(twin, tables.train, steps, trained.batch_size, trained.lr, options.seed)
    rows = [measured(method, true, test) for method in methods(model, guide, twin, steps, options)]
    for row in rows:
        row["times_the_guide"] = row["ms_a_picture"] / rows[0]["ms_a_picture"]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "pictures": len(test),
        "seed": options.seed,
        "supervised_seconds": round(seconds, 1),
        **environment(device),
        "kinds": KINDS,
        "rows": rows,
    }
    write_json(Path(options.out) if options.out else run.folder / "comparison.json", report)


def methods(model: Any, guide: Any, twin: AIR3DGuide, twin_steps: int, options: AIR3DComparisonOptions) -> list[Method]:
    """The methods to compare, the guide itself first. ``twin`` is the supervised network after ``twin_steps`` steps."""
    return [
        Method("guide", partial(inspect.find_solids, guide)),
        *(Method(f"guide, then {n} gradient steps", partial(_refined, model, guide, n)) for n in REFINED),
        Method(f"guide trained on the true latents, {twin_steps} steps", partial(inspect.find_solids, twin.eval())),
        *(
            Method(
                f"search from {options.starts} starts, {n} steps",
                partial(inspect.search_solids, model, starts=options.starts, steps=n),
                max_batch=4,
            )
            for n in options.search_steps
        ),
    ]


def _refined(model: Any, guide: Any, steps: int, x: Tensor) -> Solids:
    """The guide's solids after gradient steps."""
    solids, _ = inspect.refine_solids(model, x, inspect.find_solids(guide, x), steps)
    return solids


def measured(method: Method, true: Solids, tables: TabletopScenes) -> dict[str, Any]:
    """The method's row of the table, which is also printed."""
    found, milliseconds = timed(method.infer, tables, method.max_batch)
    metrics = inspect.solid_metrics(true, found)
    row = {"inference": method.name, **{name: metrics.get(name) for name in METRICS}, "ms_a_picture": milliseconds}
    texts = (f"{name} {value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items())
    print("  ".join(texts))
    return row


def supervised_loss(guide: AIR3DGuide, tables: TabletopScenes, indices: Tensor) -> Tensor:
    """-log q(true z | x) in nats per image.

    The target of a step is the solid nearest to where the guide looks, among those that no earlier step has had. Of
    all equivalent yaws of the target, the one nearest to the guide's is used; spheres have no yaw. Solids are erased
    from the image at their true places.
    """
    left, batch = tables[indices], tables.part(indices)
    there = torch.arange(batch.kind.shape[1], device=left.device) < batch.counts[:, None]
    rows, loss = torch.arange(len(left), device=left.device), left.new_zeros(len(left))
    periods = torch.tensor(PERIODS, device=left.device)
    present = left.new_ones(len(left))
    for _ in range(guide.num_steps):
        seen = guide.attend(guide.feature_net(left))
        features = guide.encode_glimpse(left, seen)
        looked_at = guide.renderer.standing_at(seen.detach())
        distance = (batch.place - looked_at[:, None]).norm(dim=-1).masked_fill(~there, NOWHERE)
        target = distance.argmin(1)
        value, before = there.any(1).to(left.dtype), present
        loss = loss - guide.q_z_pres(features, before).log_prob(value)
        present = value
        kind, place, yaw = batch.kind[rows, target], batch.place[rows, target], batch.yaw[rows, target]
        q_yaw, period = guide.q_z_yaw(features), periods[kind]
        times = 2 * math.pi / period.where(period > 0, torch.ones_like(period))
        nearest = wrapped(q_yaw.loc.detach() + wrapped((yaw - q_yaw.loc.detach()) * times) / times)
        log_q = guide.q_z_kind(features).log_prob(kind) + guide.q_z_place(features, seen).log_prob(place)
        log_q = log_q + q_yaw.log_prob(nearest).where(period > 0, torch.zeros_like(yaw))
        loss = loss - present * log_q
        there = there & ~torch.nn.functional.one_hot(target, there.shape[1]).bool()
        left = guide.erase(left, place).where(present[:, None, None, None] > 0, left)
    return loss.mean()


def train_supervised(
    guide: AIR3DGuide, tables: TabletopScenes, steps: int, batch_size: int, lr: float, seed: int
) -> float:
    """Train a guide on the true latents, with the run's learning rates; returns the seconds."""
    rate = torch.tensor(lr, device=tables.pixels.device)
    optim = torch.optim.Adam([p for p in guide.parameters() if p.requires_grad], lr=rate, fused=True)
    falling = Annealed(optim.param_groups[0]["lr"], cosine(lr, lr / 100, steps // 2, steps))
    generator = torch.Generator().manual_seed(seed)
    begun = time.perf_counter()
    for step in tqdm(range(steps), desc="supervised", unit="step", mininterval=1 if sys.stderr.isatty() else 30):
        falling.set(step)
        indices = torch.randint(len(tables), (batch_size,), generator=generator).to(tables.pixels.device)
        optim.zero_grad(set_to_none=True)
        supervised_loss(guide, tables, indices).backward()
        optim.step()
    return time.perf_counter() - begun


def timed(infer: Callable[[Tensor], Solids], tables: TabletopScenes, max_batch: int) -> tuple[Solids, float]:
    """The solids of all images, and milliseconds per image."""
    infer(tables.head(2)[:])  # warm up, so that one-time setup is not timed
    begun = time.perf_counter()
    found = [infer(x) for x in tables.batches(max_batch)]
    _ = [float(part.count.sum()) for part in found]  # synchronize with the device
    milliseconds = 1000 * (time.perf_counter() - begun) / len(tables)
    together = [torch.cat([getattr(part, name) for part in found]) for name in ("count", "kind", "place", "yaw")]
    return Solids(*together), milliseconds
