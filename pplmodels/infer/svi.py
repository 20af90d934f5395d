"""Stochastic variational inference with module-owned parameters and a torch optimizer."""

import warnings
from contextlib import nullcontext

import pyro
import torch
from pyro.infer import TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplmodels import ranks
from pplmodels.infer.losses import is_differentiable, loss_and_surrogate, stays_on_device
from pplmodels.infer.parameters import module_owned_parameters
from pplmodels.infer.replay import Replay
from pplmodels.infer.state import Snapshot, modules_of, state_of
from pplmodels.sharing import sharing


class SVI(pyro.infer.SVI):
    """:class:`pyro.infer.SVI` with the same constructor and methods, for pairs that own their parameters.

    With a :class:`torch.optim.Optimizer` over the pair's parameters (:func:`pplmodels.infer.adam` builds one):

    - the parameters stay in the modules and nothing enters Pyro's global param store, so two pairs live
      in one process and a notebook cell can be run again;
    - the gradients are those of the stock class; with ``clip_norm`` each parameter group's gradient of the loss *per
      image* is scaled down to that norm;
    - losses are returned per image (over the plate named "data"; in total where a pair has none), in nats, as
      tensors on the device: the device is waited for only where a number is read with ``float``;
    - after a loss (with ``clip_norm`` also a gradient) that is not finite the parameters stop moving and
      :attr:`failed` is true, so the weights that led there can be looked at and the last good ones are not lost;
    - the arguments of distributions are validated before the first step only: the checks read values back;
    - with ``compile`` the loss and all gradients are traced once into a flat graph and replayed
      (:class:`pplmodels.infer.replay.Replay`, docs/engine.md): the same numbers without Pyro's and autograd's Python.

    With a :class:`pyro.optim.PyroOptim` everything is the stock class's, including its totals and its param store.

    Arguments:
        model, guide: callables with Pyro primitives; with a torch optimizer, modules.
        optim: a torch optimizer or a PyroOptim.
        loss: an ELBO, by default ``TraceGraph_ELBO()``.
        clip_norm: largest gradient norm a parameter group, in nats per image per unit; None for no limit.
        compile: replay a traced graph; True raises where that cannot be done, "auto" warns once and goes on without.
        precision: bfloat16 for the operations that can be as rough in a step (:class:`torch.autocast`); parameters,
            gradients and :meth:`evaluate_loss` keep theirs.
    """

    def __init__(
        self,
        model,
        guide,
        optim,
        loss: ELBO | None = None,
        *,
        clip_norm: float | None = None,
        compile: bool | str = False,
        precision: torch.dtype | None = None,
    ):
        if compile not in (True, False, "auto"):
            raise ValueError(f'compile is True, False or "auto", not {compile!r}')
        loss = TraceGraph_ELBO() if loss is None else loss
        if isinstance(optim, PyroOptim):
            if clip_norm is not None or compile is True or precision is not None:
                raise ValueError("clip_norm, compile and precision need a torch optimizer; a PyroOptim has clip_args")
            super().__init__(model, guide, optim, loss)
            return
        if not isinstance(optim, torch.optim.Optimizer):
            raise ValueError(f"optim is a torch.optim.Optimizer or a pyro.optim.PyroOptim, not {optim!r}")
        if not is_differentiable(loss):
            raise ValueError(f"{type(loss).__name__} has no differentiable loss: use it with a pyro.optim optimizer")
        if compile and not stays_on_device(loss):
            refusal = f"{type(loss).__name__} cannot be compiled: it reads values back to the host."
            if compile is True:
                raise ValueError(refusal)
            warnings.warn(f"{refusal} It runs uncompiled.", stacklevel=2)
            compile = False
        super(pyro.infer.SVI, self).__init__()  # the stock constructor wants a PyroOptim
        self.model, self.guide, self.optim = model, guide, optim
        self.elbo = loss
        self.loss, self.loss_and_grads = loss.loss, loss.loss_and_grads
        self.clip_norm, self.precision = clip_norm, precision
        self.failed = torch.zeros((), dtype=torch.bool, device=optim.param_groups[0]["params"][0].device)
        self._validated = False
        self._run = self._differentiate
        if compile:
            tolerance = 8 * torch.finfo(precision).eps if precision else None
            pair = model, guide
            self._run = Replay(self._differentiate, pair, self.parameters(), compile == "auto", tolerance)

    def step(self, *args, **kwargs) -> Tensor | float:
        """Take one gradient step; returns the loss per image in nats (the arguments go to model and guide)."""
        if isinstance(self.optim, PyroOptim):
            return super().step(*args, **kwargs)
        if not self._validated:
            self._validate(args, kwargs)
        # before the run, so that it finds the last gradients' memory free and still in the cache
        self.optim.zero_grad(set_to_none=True)
        loss, images, gradients = self.gradients(*args, **kwargs)
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self._update(loss, images)
        return loss.clone()  # a replay on CUDA writes its next loss to the same place

    def gradients(self, *args, **kwargs) -> tuple[Tensor, int, tuple[Tensor | None, ...]]:
        """One estimate: the loss per image, the number of images, and for each of :meth:`parameters` the gradient of
        the images' total loss (None where it has no influence). On CUDA a compiled pair's next estimate overwrites it.
        Where several ranks train together, all of this is of the images of all ranks.
        """
        loss, images, gradients = _of_all_ranks(*self._run(args, kwargs), self.parameters())
        # here and not in the run, where the traced kernels' memory orders are not those of the replayed ones
        return loss, images, tuple(map(_laid_out_like, gradients, self.parameters()))

    def evaluate_loss(self, *args, **kwargs) -> Tensor | float:
        """The loss per image in nats, from one sample of the guide, without gradients."""
        if isinstance(self.optim, PyroOptim):
            return super().evaluate_loss(*args, **kwargs)
        with torch.no_grad():
            loss, _, images = self._losses(args, kwargs)
        return loss / images

    def parameters(self) -> list[Tensor]:
        """What a step moves: the optimizer's parameters that are not frozen."""
        return [p for group in self.optim.param_groups for p in group["params"] if p.requires_grad]

    def _validate(self, args: tuple, kwargs: dict) -> None:
        """Run the programs once with all of Pyro's checks, and undo what that changes."""
        if is_validation_enabled():
            before = Snapshot(state_of(modules_of((self.model, self.guide)), self.parameters()))
            with torch.no_grad():
                self._losses(args, kwargs)
            before.restore()
        self._validated = True

    def _differentiate(self, args: tuple, kwargs: dict) -> tuple[Tensor, int, tuple[Tensor | None, ...]]:
        rough = torch.autocast(self.failed.device.type, self.precision) if self.precision else nullcontext()
        with pyro.validation_enabled(False), rough:
            loss, surrogate, images = self._losses(args, kwargs)
        gradients = torch.autograd.grad(surrogate, self.parameters(), allow_unused=True)
        return loss.detach() / images, images, gradients

    def _losses(self, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, int]:
        """The loss, a scalar with the estimator's gradients, and the number of images both are summed over."""
        with module_owned_parameters(), sharing(), _DataPlate() as plate:
            loss, surrogate = loss_and_surrogate(self.elbo, self.model, self.guide, args, kwargs)
        return loss, surrogate, plate.size

    def _update(self, loss: Tensor, images: int) -> None:
        finite = [loss]
        if self.clip_norm is not None:
            for group in self.optim.param_groups:
                gradients = [p.grad for p in group["params"] if p.grad is not None]
                if gradients:
                    finite.append(torch.nn.utils.get_total_norm(gradients))
                    torch.nn.utils.clip_grads_with_norm_(group["params"], self.clip_norm * images, finite[-1])
        self.failed |= ~torch.stack(finite).isfinite().all()
        if getattr(self.optim, "_step_supports_amp_scaling", False):
            # Fused optimizers skip a step by a flag on the device, as torch.amp.GradScaler asks them to.
            self.optim.found_inf = self.failed.float()
            self.optim.grad_scale = None
        elif self.failed:
            return
        self.optim.step()


def _of_all_ranks(
    loss: Tensor, images: int, gradients: tuple[Tensor | None, ...], parameters: list[Tensor]
) -> tuple[Tensor, int, tuple[Tensor | None, ...]]:
    """The estimates of all ranks as one, by one exchange; a gradient is None nowhere then, so that its parts match."""
    if ranks.number() == 1:
        return loss, images, gradients
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    images *= ranks.number()  # each rank has as many
    total, *summed = ranks.totals([loss, *filled])
    return total / ranks.number(), images, tuple(summed)


def _laid_out_like(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The gradient in the parameter's memory order, in which fused optimizers go through both.

    Convolutions of inputs whose channels come last in memory give the gradients of their weights in that order.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


class _DataPlate(Messenger):
    """Notes the length of the plate named "data"; 1 where there is none."""

    size = 1

    def _pyro_sample(self, msg) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == "data":
                self.size = frame.size
