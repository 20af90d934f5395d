"""The state of a training run."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pplmodels.infer import SVI, Annealed


class TrainState:
    """Everything that changes from step to step, except the random generators: what a run needs to be continued.

    Schedules and the position in the epoch are functions of the step.

    Arguments:
        svi: the SVI whose steps are taken. Its model and guide are modules.
        averaged: averages the weights of a ModuleList of model and guide after each step.
        step: the number of steps taken.
        seconds: the seconds of training so far.

    Attributes:
        pair: a ModuleList of the model and the guide.
        summed_losses: the sum of the losses since the last evaluation, in nats per image: a float64 scalar on the
            device of the losses. Who evaluates sets it to 0.
    """

    def __init__(self, svi: SVI, averaged: AveragedModel | None = None, step: int = 0, seconds: float = 0.0):
        self.svi, self.averaged, self.step = svi, averaged, step
        self.pair = nn.ModuleList([svi.model, svi.guide])
        self.summed_losses = torch.zeros((), dtype=torch.float64, device=svi.failed.device)
        self._earlier = seconds  # before the clock was started
        self._begun: float | None = None

    def start_clock(self) -> None:
        """Let :attr:`seconds` increase from now on."""
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The seconds of training over all starts, with evaluations."""
        return self._earlier + (0.0 if self._begun is None else time.perf_counter() - self._begun)

    def take_step(self, batch: Tensor, annealed: Sequence[Annealed] = ()) -> Tensor:
        """Take a step on ``batch``, with the ``annealed`` tensors at their values for it; returns the loss.

        The loss is in nats per image and stays on its device.
        """
        for quantity in annealed:
            quantity.set(self.step)
        loss = self.svi.step(batch)
        self.summed_losses += loss  # one by one: a resumed run sums in the same order
        if self.averaged is not None:
            self.averaged.update_parameters(self.pair)
        self.step += 1
        return loss

    def weights(self) -> dict:
        """The weights of the model and the guide and their averages, with the names of the classes."""
        return {
            "model_class": type(self.svi.model).__name__,
            "guide_class": type(self.svi.guide).__name__,
            **{name: module.state_dict() for name, module in self._modules().items()},
        }

    def load_weights(self, weights: dict) -> None:
        """Restore what :meth:`weights` returned."""
        for name, module in self._modules().items():
            module.load_state_dict(weights[name])

    def state_dict(self) -> dict:
        """The weights, the optimizer's state and the counters. The tensors are not copied."""
        return {
            **self.weights(),
            "step": self.step,
            "seconds": self.seconds,
            "summed_losses": self.summed_losses,
            "optim": self.svi.optim.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what :meth:`state_dict` returned.

        Parameters, buffers and learning rates are modified in place. The other tensors of the optimizer become those of
        ``state``, as with :meth:`torch.optim.Optimizer.load_state_dict`.
        """
        self.load_weights(state)
        optim = self.svi.optim
        # Loading replaces the learning-rate tensors of an optimizer, but schedules hold references to the current ones.
        rates = [group["lr"] for group in optim.param_groups]
        optim.load_state_dict(state["optim"])
        for group, rate in zip(optim.param_groups, rates, strict=True):
            if isinstance(rate, Tensor):
                group["lr"] = rate.copy_(group["lr"])
        self.step = state["step"]
        self.summed_losses.copy_(state["summed_losses"])
        self._earlier = state["seconds"]

    def _modules(self) -> dict[str, nn.Module]:
        averaged = {} if self.averaged is None else {"averaged": self.averaged}
        return {"model": self.svi.model, "guide": self.svi.guide, **averaged}
