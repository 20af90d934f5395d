"""The training loop with evaluations, checkpoints and early stopping."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pyro
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from pplmodels import distributed
from pplmodels.data import Images
from pplmodels.errors import InputError, NonFiniteLossError, Terminated
from pplmodels.infer import SVI, Annealed, schedules_end
from pplmodels.infer.compile.state import tensors_of
from pplmodels.messages import say
from pplmodels.metrics.bounds import nonfinite_sites
from pplmodels.module import PairModule
from pplmodels.rng import SEEDS, get_rng_state, seed_all, set_rng_state
from pplmodels.training.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from pplmodels.training.preview import Preview
from pplmodels.training.run import Run
from pplmodels.training.signals import defer_signals

CHECK_EVERY = 20  # steps between reads from the device, for the progress bar and the check for a non-finite loss


def fit(
    svi: SVI,
    images: Images,
    run: Run,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    annealed: Sequence[Annealed] = (),
    evaluate: Callable[[], dict],
    eval_every: int,
    shown: Sequence[str] = ("elbo",),
    objective: str = "elbo",
    resume: bool = False,
    averaged: AveragedModel | None = None,
    patience: int | None = None,
    saved: Sequence[PairModule] = (),
    draw: Callable[[], object] | None = None,
) -> float:
    """Take ``steps`` SVI steps on shuffled batches of ``images``; returns the seconds of training over all starts.

    Every ``eval_every`` steps, and after the last step, ``evaluate()`` returns a dict of metrics for the run's log. The
    pair is then in evaluation mode and the random state is fixed, so evaluations do not affect the training. A
    checkpoint is written after each evaluation. The last batch of an epoch may be smaller. If the metrics contain
    "warning", its sentence is printed. ``objective`` names the quantity that is maximized; its mean since the last
    evaluation is logged as "train_<objective>". With ``resume`` the run continues from its checkpoint, or starts if it
    was killed before the first one. On Ctrl-C or SIGTERM the current step or evaluation is finished, a checkpoint is
    written, and ``KeyboardInterrupt`` is raised (:class:`pplmodels.errors.Terminated`, a subclass, for SIGTERM).

    ``averaged`` averages the weights of a ModuleList of the SVI's model and guide after each step; its state is part of
    the checkpoint. With ``patience`` training ends after that many evaluations without a higher "valid_elbo", and the
    weights of the best evaluation are restored, including the averaged ones.

    After each evaluation but the last, and before an early stop, the weights of the modules in ``saved`` are written to
    the run's folder and ``draw()`` plots them. Plots are limited to a small share of the time.

    With several ranks (:mod:`pplmodels.distributed`), each takes an equal shard of every batch. ``evaluate`` must
    return the same metrics on all ranks. All ranks start from the weights of rank 0 and draw different noise.

    Raises :class:`pplmodels.errors.NonFiniteLossError`. The last good checkpoint is kept.
    """
    distributed.check_divisible(batch_size)
    device = images.pixels.device
    pair = nn.ModuleList([svi.model, svi.guide])
    summed = torch.zeros((), dtype=torch.float64, device=device)  # losses since the last evaluation
    start, earlier = 0, 0.0
    if resume and (run.metrics or has_checkpoint(run.folder)):
        start, earlier, so_far = _state(run, svi, averaged)
        summed.copy_(so_far)
        run.forget_after(start)
    else:
        distributed.broadcast_(tensors_of([pair]))
        if distributed.rank() > 0:
            seed_all(seed + 1_000_003 * distributed.rank())
        save_checkpoint(run.folder, svi, 0, 0.0, summed, averaged)  # so that a run that is killed early can be resumed
    run.begin(start, device)
    begun = time.perf_counter()
    recent: list[tuple[Tensor, Tensor]] = []  # batches and losses since the last read, still on the device
    history = [line for line in run.metrics if line["step"] <= start]
    metrics: dict = history[-1] if history else {}
    evaluated = metrics.get("step", 0)
    preview = Preview(run.folder, saved, draw)
    over = start >= steps or (patience is not None and _since_best(history) >= patience)

    def seconds() -> float:
        return earlier + time.perf_counter() - begun

    if over:
        say(f"{run.folder}: training had already ended, at step {start}")
    with _progress(start, steps) as bar, defer_signals() as stop_requested:
        batches = images.batched(_orders(len(images), batch_size, seed, start, device))
        for step in range(start, start if over else steps):
            for quantity in annealed:
                quantity.set(step)
            batch = next(batches)
            loss = svi.step(batch)
            recent.append((batch, loss))
            summed += loss  # one by one: a resumed run sums in the same order
            if averaged is not None:
                averaged.update_parameters(pair)
            done = step + 1
            evaluating = done % eval_every == 0 or done == steps
            # several ranks stop at the same step: they ask each other where they look anyway
            may_stop = distributed.world_size() == 1 or evaluating or done % CHECK_EVERY == 0
            stopping = may_stop and distributed.any_rank(stop_requested() is not None)
            saving = evaluating or stopping
            if saving or done % CHECK_EVERY == 0:
                if svi.failed:
                    raise NonFiniteLossError(_what_failed(svi, [batch for batch, _ in recent], done))
                rate = (done - start) * batch_size / (time.perf_counter() - begun)
                _show(bar, objective, recent, {name: metrics[name] for name in shown if name in metrics}, rate)
                recent.clear()
            bar.update()
            if evaluating:
                mean = -float(summed) / (done - evaluated)
                distributed.broadcast_(list(pair.buffers()))  # statistics of modules that do not reduce them
                metrics = {f"train_{objective}": mean, **_evaluate_isolated(evaluate, pair)}
                evaluated = done
                summed.zero_()
                history.append({"step": done, **metrics})
                run.log(done, seconds(), metrics)
                say(f"step {done:>6}  {seconds():6.0f} s  {_summary(metrics)}")
                if "warning" in metrics:
                    say(f"warning: {metrics['warning']}")
                if patience is not None and _since_best(history) == 0:
                    save_weights(run.folder, svi, averaged)
                stopping = distributed.any_rank(stop_requested() is not None)  # it may have come since
            if saving:
                save_checkpoint(run.folder, svi, done, seconds(), summed, averaged)
                if stopping or done < steps:
                    _evaluate_isolated(partial(preview.update, stopping), pair)
                if stopping:
                    run.close()
                    raise stop_requested() or Terminated()
            if evaluating and patience is not None and _since_best(history) >= patience:
                say(f"no higher valid_elbo in {patience} evaluations: training ends")
                break
    if patience is not None:
        load_weights(run.folder, svi, averaged)
    return seconds()


def _state(run: Run, svi: SVI, averaged: AveragedModel | None) -> tuple[int, float, Tensor]:
    """Load the run's checkpoint; one that ``--extend`` copied and that does not fit is removed again."""
    try:
        return load_checkpoint(run.folder, svi, averaged)
    except InputError as error:
        other = run.config.get("extend")
        if not other or (run.folder / "environment.jsonl").exists():
            raise
        run.give_back()
        raise InputError(f"{other} was trained with other options than these: only its weights can be used.") from error


def warn_if_short(steps: int, annealed: Sequence[Annealed], options: str) -> None:
    """Print a warning if schedules, which are set by ``options``, end after the last of ``steps`` steps."""
    needed = schedules_end(annealed)
    if needed > steps:
        say(f"warning: the schedules of this run need {needed:,} steps, but it takes {steps:,}: see --steps, {options}")


def _orders(length: int, batch_size: int, seed: int, start: int, device: torch.device) -> Iterator[Tensor]:
    """An endless iterator of shuffled batch indices from step ``start`` on.

    The order within an epoch depends only on the seed and the epoch number. Each rank gets its shard of a batch. The
    last batch of an epoch is cut to a multiple of the world size.
    """
    last = length % batch_size
    used = length - last % distributed.world_size()
    per_epoch = -(-used // batch_size)
    epoch, position = divmod(start, per_epoch)
    while True:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % SEEDS)
        order = torch.randperm(length, generator=generator, device="cpu")[:used].to(device)
        for indices in order.split(batch_size)[position:]:
            yield indices[distributed.shard(len(indices))]
        epoch, position = epoch + 1, 0


def _since_best(history: list[dict]) -> int:
    """The number of evaluations since the one with the highest "valid_elbo"."""
    bounds = [line.get("valid_elbo", -math.inf) for line in history]
    return len(bounds) - 1 - bounds.index(max(bounds)) if bounds else 0


def _evaluate_isolated(evaluate: Callable[[], dict], pair: nn.Module) -> dict:
    """Call ``evaluate`` in evaluation mode from a fixed random state; restore mode and generators afterwards."""
    states = get_rng_state()
    pyro.set_rng_seed(distributed.rank())
    pair.eval()
    try:
        return evaluate()
    finally:
        pair.train()
        set_rng_state(states)


def _what_failed(svi: SVI, recent: list[Tensor], done: int) -> str:
    steps = f"between step {done - len(recent) + 1} and step {done}"
    found = [nonfinite_sites(svi.model, svi.guide, x) for x in recent]  # all batches, so that every rank runs as many
    for sites in filter(None, found):
        return f"the loss became infinite or NaN {steps}: log-probability of {', '.join(sites)}."
    return f"the loss or its gradient became infinite or NaN {steps}; every site's log-probability is finite again now."


def _progress(start: int, steps: int) -> tqdm:
    quiet = not sys.stderr.isatty()  # update a log file rarely, a terminal often
    interval = 30 if quiet else 0.5
    hidden = distributed.rank() > 0
    return tqdm(initial=start, total=steps, unit="step", dynamic_ncols=True, mininterval=interval, disable=hidden)


def _show(bar: tqdm, objective: str, recent: list[tuple[Tensor, Tensor]], metrics: dict, rate: float) -> None:
    if bar.disable:
        return
    value = -float(torch.stack([loss for _, loss in recent]).mean())
    fields = {objective: f"{value:.1f} nats", **{f"held-out {name}": f"{value:.4g}" for name, value in metrics.items()}}
    bar.set_postfix({**fields, "images/s": f"{rate:.0f}"}, refresh=False)


def _summary(metrics: dict) -> str:
    """The numbers and lists of numbers among the metrics, in order, as text."""
    texts = []
    for name, value in metrics.items():
        if isinstance(value, int | float):
            texts.append(f"{name} {value:.4g}")
        elif isinstance(value, list) and all(isinstance(number, int | float) for number in value):
            texts.append(f"{name} [{' '.join(f'{number:.2g}' for number in value)}]")
    return "  ".join(texts)
