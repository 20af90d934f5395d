"""The progress bar of the training loop."""

import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from pplmodels import distributed


class Progress:
    """A context with a progress bar on stderr; ranks other than 0 show none.

    Arguments:
        start, steps: the number of steps taken before, and the number at the end of the training.
        batch_size: images per step, for the speed.
        objective: the name of the maximized quantity.
        shown: the names of the metrics that are shown.
    """

    def __init__(self, start: int, steps: int, batch_size: int, objective: str, shown: Sequence[str]):
        self._start, self._batch_size, self._objective, self._shown = start, batch_size, objective, shown
        interval = 0.5 if sys.stderr.isatty() else 30  # update a terminal often, a log file rarely
        hidden = distributed.rank() > 0
        self._bar = tqdm(
            initial=start, total=steps, unit="step", dynamic_ncols=True, mininterval=interval, disable=hidden
        )
        self._begun = time.perf_counter()

    def __enter__(self) -> "Progress":
        """Return the progress bar, which is shown from its creation on."""
        return self

    def __exit__(self, *exception) -> None:
        """Close the bar. What it showed last stays."""
        self._bar.close()

    def describe(self, step: int, losses: list[Tensor], metrics: dict) -> None:
        """Set the numbers beside the bar: the mean of the last ``losses``, the latest ``metrics``, and the speed."""
        if self._bar.disable:
            return
        rate = (step - self._start) * self._batch_size / (time.perf_counter() - self._begun)
        value = -float(torch.stack(losses).mean())
        held_out = {f"held-out {name}": f"{metrics[name]:.4g}" for name in self._shown if name in metrics}
        fields = {self._objective: f"{value:.1f} nats", **held_out, "images/s": f"{rate:.0f}"}
        self._bar.set_postfix(fields, refresh=False)

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.update()
