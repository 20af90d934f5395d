"""The training loop: batches in, steps, evaluations, checkpoints."""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from pplmodels.data import Images
from pplmodels.errors import NonFiniteLoss
from pplmodels.generators import generator_states, restore_generators
from pplmodels.infer import SVI, Annealed
from pplmodels.infer.bounds import nonfinite_sites
from pplmodels.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from pplmodels.training.run import Run

POLL = 20  # steps between two looks at the device: for the progress bar, and for a loss that is not finite


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
) -> float:
    """Take ``steps`` SVI steps over shuffled batches of ``images``; returns the seconds spent, of all sittings.

    Every ``eval_every`` steps, and after the last, ``evaluate()`` gives a dict of metrics for the run's log, with model
    and guide in evaluation mode and from a fixed random state, so that looking does not change the training; then a
    checkpoint is written. An epoch's last batch may be smaller; no image is left out. A metric "warning", a sentence,
    is shown as one. ``objective`` names what the steps raise, whose mean since the last evaluation is logged as
    "train_<objective>". With ``resume`` the run continues from its checkpoint. On Ctrl-C or SIGTERM the current step is
    finished, a checkpoint is written and ``KeyboardInterrupt`` raised.

    ``averaged``, over a ModuleList of the SVI's model and guide, follows the weights after each step; its state is in
    the checkpoint. With ``patience`` training ends after that many evaluations without a higher "valid_elbo", and the
    weights (the averaged ones too) of the highest come back.

    Raises :class:`pplmodels.errors.NonFiniteLoss`; the last good checkpoint stays.
    """
    start, earlier = load_checkpoint(run.folder, svi, averaged) if resume else (0, 0.0)
    if resume:
        run.forget_after(start)
    else:
        save_checkpoint(run.folder, svi, 0, 0.0, averaged)  # a run that is killed early can be resumed too
    begun = time.perf_counter()
    pair = nn.ModuleList([svi.model, svi.guide])
    recent: list[Tensor] = []  # batches since the last look, to find out what went wrong in them
    losses: list[Tensor] = []  # since the last evaluation; they stay on the device
    metrics: dict = run.metrics[-1] if run.metrics else {}

    def seconds() -> float:
        return earlier + time.perf_counter() - begun

    with _progress(start, steps) as bar, _stop_requests() as stop_requested:
        batches = _batches(images, batch_size, seed, start)
        for step in range(start, steps):
            for quantity in annealed:
                quantity.set(step)
            recent.append(next(batches))
            losses.append(svi.step(recent[-1]))
            if averaged is not None:
                averaged.update_parameters(pair)
            done = step + 1
            evaluating = done % eval_every == 0 or done == steps
            if evaluating or done % POLL == 0:
                if svi.failed:
                    raise NonFiniteLoss(_what_failed(svi, recent, done))
                recent.clear()
                _show(bar, objective, losses, {name: metrics[name] for name in shown if name in metrics}, batch_size)
            bar.update()
            if evaluating:
                metrics = {f"train_{objective}": -float(torch.stack(losses).mean()), **_undisturbed(evaluate, pair)}
                losses.clear()
                run.log(done, seconds(), metrics)
                bar.write(f"step {done:>6}  {seconds():6.0f} s  {_summary(metrics)}", file=sys.stderr)
                if "warning" in metrics:
                    bar.write(f"warning: {metrics['warning']}", file=sys.stderr)
            if evaluating and patience is not None:
                bounds = [line.get("valid_elbo", -math.inf) for line in run.metrics]
                since_best = len(bounds) - 1 - bounds.index(max(bounds))
                if since_best == 0:
                    save_weights(run.folder, svi, averaged)
            if evaluating or stop_requested():
                save_checkpoint(run.folder, svi, done, seconds(), averaged)
            if stop_requested():
                run.close()
                raise KeyboardInterrupt
            if evaluating and patience is not None and since_best >= patience:
                bar.write(f"no higher valid_elbo in {patience} evaluations: training ends", file=sys.stderr)
                break
    if patience is not None:
        load_weights(run.folder, svi, averaged)
    return seconds()


def _batches(images: Images, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Endless shuffled batches from step ``start`` on; an epoch's order depends on the seed and its number only."""
    per_epoch = -(-len(images) // batch_size)
    epoch, position = divmod(start, per_epoch)
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=generator).to(images.pixels.device)
        for indices in order.split(batch_size)[position:]:
            yield images[indices]
        epoch, position = epoch + 1, 0


def _undisturbed(evaluate: Callable[[], dict], pair: nn.Module) -> dict:
    """Call ``evaluate`` in evaluation mode from a fixed random state, and put mode and generators back."""
    states = generator_states()
    pyro.set_rng_seed(0)
    pair.eval()
    try:
        return evaluate()
    finally:
        pair.train()
        restore_generators(states)


def _what_failed(svi: SVI, recent: list[Tensor], done: int) -> str:
    steps = f"between step {done - len(recent) + 1} and step {done}"
    for x in recent:
        if sites := nonfinite_sites(svi.model, svi.guide, x):
            return f"the loss became infinite or NaN {steps}: log-probability of {', '.join(sites)}."
    return f"the loss or its gradient became infinite or NaN {steps}; every site's log-probability is finite again now."


def _progress(start: int, steps: int) -> tqdm:
    quiet = not sys.stderr.isatty()  # a log file wants a line now and then, a terminal a moving bar
    return tqdm(initial=start, total=steps, unit="step", dynamic_ncols=True, mininterval=30 if quiet else 0.5)


def _show(bar: tqdm, objective: str, losses: list[Tensor], metrics: dict, batch_size: int) -> None:
    value = -float(torch.stack(losses[-POLL:]).mean())
    state = bar.format_dict
    rate = (state["n"] - state["initial"]) * batch_size / max(state["elapsed"], 1e-9)
    fields = {objective: f"{value:.1f} nats", **{f"held-out {name}": f"{value:.4g}" for name, value in metrics.items()}}
    bar.set_postfix({**fields, "images/s": f"{rate:.0f}"}, refresh=False)


def _summary(metrics: dict) -> str:
    """The numbers and the lists of numbers among the metrics, in their order."""
    texts = []
    for name, value in metrics.items():
        if isinstance(value, int | float):
            texts.append(f"{name} {value:.4g}")
        elif isinstance(value, list) and all(isinstance(number, int | float) for number in value):
            texts.append(f"{name} [{' '.join(f'{number:.2g}' for number in value)}]")
    return "  ".join(texts)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C or SIGTERM has come; a second one of them acts as usual."""
    received = []

    def note(number, frame) -> None:
        received.append(number)
        for name, handler in previous.items():
            signal.signal(name, handler)

    previous = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere signals are somebody else's business
        previous = {name: signal.signal(name, note) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
