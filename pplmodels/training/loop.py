"""The training loop with evaluations, checkpoints and early stopping."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import pyro
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pplmodels import distributed
from pplmodels.data import Images
from pplmodels.errors import InputError, NonFiniteLossError, Terminated
from pplmodels.infer import SVI, Annealed, schedules_end
from pplmodels.infer.compile.state import tensors_of
from pplmodels.messages import say
from pplmodels.metrics.bounds import nonfinite_sites
from pplmodels.module import PairModule
from pplmodels.rng import SEEDS, get_rng_state, seed_all, set_rng_state
from pplmodels.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from pplmodels.training.early_stopping import EarlyStopping
from pplmodels.training.preview import Preview
from pplmodels.training.progress import Progress
from pplmodels.training.run import Run
from pplmodels.training.signals import defer_signals
from pplmodels.training.state import TrainState

ResultT = TypeVar("ResultT")

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
    fuse: bool = False,
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

    With ``fuse`` a compiled step is fused in the background (:meth:`pplmodels.infer.SVI.fuse`) if the training is so
    long that this pays.

    With several ranks (:mod:`pplmodels.distributed`), each takes an equal shard of every batch. ``evaluate`` must
    return the same metrics on all ranks. All ranks start from the weights of rank 0 and draw different noise.

    Raises :class:`pplmodels.errors.NonFiniteLossError`. The last good checkpoint is kept.
    """
    distributed.check_divisible(batch_size)
    device = images.pixels.device
    state = TrainState(svi, averaged)
    history = _restore_or_start(run, state, seed, resume)
    run.begin(state.step, device)
    state.start_clock()
    latest = history[-1] if history else {}
    early_stopping = EarlyStopping(patience, run.folder, history)
    preview = Preview(run.folder, saved, draw)
    recent: list[tuple[Tensor, Tensor]] = []  # batches and losses since the last check, still on the device
    fusing = _Fusing(svi) if fuse else None
    remaining = steps - state.step
    if remaining <= 0 or early_stopping.is_due:
        say(f"{run.folder} was already trained to the end, at step {state.step}")
        remaining = 0
    with Progress(state.step, steps, batch_size, objective, shown) as progress, defer_signals() as stop_requested:
        batches = images.batched(_orders(len(images), batch_size, seed, state.step, device))
        for batch in islice(batches, remaining):
            recent.append((batch, state.take_step(batch, annealed)))
            evaluating = state.step % eval_every == 0 or state.step == steps
            checking = evaluating or state.step % CHECK_EVERY == 0
            # several ranks stop at the same step: they ask each other where they look anyway
            may_stop = checking or distributed.world_size() == 1
            stopping = may_stop and distributed.any_rank(stop_requested() is not None)
            if fusing is not None:
                fusing.after_step(steps - state.step)
            if checking or stopping:
                _check_finite(state, [batch for batch, _ in recent])
                progress.describe(state.step, [loss for _, loss in recent], latest)
                recent.clear()
            progress.advance()
            if evaluating:
                latest = _evaluate(run, state, evaluate, objective, since=latest.get("step", 0))
                early_stopping.observe(latest, state)
                stopping = distributed.any_rank(stop_requested() is not None)  # it may have come since
            if evaluating or stopping:
                save_checkpoint(run.folder, state)
                if stopping or state.step < steps:
                    _evaluate_isolated(partial(preview.update, stopping), state.pair)
            if stopping:
                run.close()
                raise stop_requested() or Terminated()
            if evaluating and early_stopping.is_due:
                say(f"training ends, because valid_elbo has not improved in {patience} evaluations")
                break
    early_stopping.restore_best(state)
    return state.seconds


def _restore_or_start(run: Run, state: TrainState, seed: int, resume: bool) -> list[dict]:
    """Load the run's checkpoint, or write that of step 0 if there is nothing to resume; returns the evaluations so far.

    A run starts with the weights of rank 0 and with different noise on each rank.
    """
    if resume and (run.metrics or has_checkpoint(run.folder)):
        _load(run, state)
        run.forget_after(state.step)
    else:
        distributed.broadcast_(tensors_of([state.pair]))
        if distributed.rank() > 0:
            seed_all(seed + 1_000_003 * distributed.rank())
        save_checkpoint(run.folder, state)  # so that a run that is killed early can be resumed
    # the other ranks may read before rank 0 has dropped the later ones
    return [line for line in run.metrics if line["step"] <= state.step]


def _load(run: Run, state: TrainState) -> None:
    """Load the run's checkpoint; one that ``--extend`` copied and that does not fit is removed again."""
    try:
        load_checkpoint(run.folder, state)
    except InputError as error:
        other = run.config.get("extend")
        if not other or (run.folder / "environment.jsonl").exists():
            raise
        run.give_back()
        raise InputError(
            f"{other} was trained with other options, so only its weights can be used (--init-from)."
        ) from error


def warn_if_short(steps: int, annealed: Sequence[Annealed], options: str) -> None:
    """Print a warning if schedules, which are set by ``options``, end after the last of ``steps`` steps."""
    needed = schedules_end(annealed)
    if needed > steps:
        say(f"warning: the schedules need {needed:,} steps, but the run only has {steps:,} (see --steps, {options})")


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


class _Fusing:
    """Begins to fuse the step when its duration is known, and prints what has become of it."""

    def __init__(self, svi: SVI):
        self.svi, self.told = svi, ""
        self.taken, self.start = 0, 0.0

    def after_step(self, remaining: int) -> None:
        self.taken += 1
        if self.taken == CHECK_EVERY:
            self.start = time.perf_counter()
        elif self.taken == 2 * CHECK_EVERY:
            self.svi.fuse(remaining * (time.perf_counter() - self.start) / CHECK_EVERY)
        if self.svi.fusion != self.told:
            self.told = self.svi.fusion
            say(self.told)


def _evaluate(run: Run, state: TrainState, evaluate: Callable[[], dict], objective: str, since: int) -> dict:
    """Evaluate the pair, log and print the metrics, and return them with the step.

    Among them is the mean of the objective over the steps after step ``since``, that of the last evaluation.
    """
    mean = -float(state.summed_losses) / (state.step - since)
    distributed.broadcast_(list(state.pair.buffers()))  # statistics of modules that do not reduce them
    metrics = {f"train_{objective}": mean, **_evaluate_isolated(evaluate, state.pair)}
    state.summed_losses.zero_()
    run.log(state.step, state.seconds, metrics)
    say(f"step {state.step:>6}  {state.seconds:6.0f} s  {_summary(metrics)}")
    if "warning" in metrics:
        say(f"warning: {metrics['warning']}")
    return {"step": state.step, **metrics}


def _evaluate_isolated(evaluate: Callable[[], ResultT], pair: nn.Module) -> ResultT:
    """Call ``evaluate`` in evaluation mode from a fixed random state; restore mode and generators afterward."""
    states = get_rng_state()
    pyro.set_rng_seed(distributed.rank())
    pair.eval()
    try:
        return evaluate()
    finally:
        pair.train()
        set_rng_state(states)


def _check_finite(state: TrainState, recent: list[Tensor]) -> None:
    """Raise :class:`NonFiniteLossError` if a loss or gradient of the last steps, on the batches ``recent``, was not."""
    svi = state.svi
    if not svi.failed:
        return
    steps = f"between step {state.step - len(recent) + 1} and step {state.step}"
    found = [nonfinite_sites(svi.model, svi.guide, x) for x in recent]  # all batches, so that every rank runs as many
    for sites in filter(None, found):
        raise NonFiniteLossError(
            f"the loss became infinite or NaN {steps}, because the log-probability of {', '.join(sites)} is not finite."
        )
    raise NonFiniteLossError(
        f"the loss or its gradient became infinite or NaN {steps}, but all log-probabilities are finite "
        "at the current weights."
    )


def _summary(metrics: dict) -> str:
    """The numbers and lists of numbers among the metrics, in order, as text."""
    texts = []
    for name, value in metrics.items():
        if isinstance(value, int | float):
            texts.append(f"{name} {value:.4g}")
        elif isinstance(value, list) and all(isinstance(number, int | float) for number in value):
            texts.append(f"{name} [{' '.join(f'{number:.2g}' for number in value)}]")
    return "  ".join(texts)
