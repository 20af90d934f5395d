"""Stochastic variational inference with module-owned parameters and a torch optimizer."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import pyro
import torch
from pyro.infer import TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution
from torch.utils._pytree import tree_map_only

from pplmodels import distributed
from pplmodels.defaults import default_device
from pplmodels.infer.compile.program import CompiledProgram
from pplmodels.infer.compile.state import Snapshot, State
from pplmodels.infer.elbos.autograd import leaves
from pplmodels.infer.elbos.protocol import Objective, check_objective, loss_and_surrogate, why_uncompiled
from pplmodels.infer.looking import unchanged
from pplmodels.infer.observed import Fitting
from pplmodels.infer.traces import Stated, local_params
from pplmodels.memo import memoise

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class SVI(pyro.infer.SVI):
    """:class:`pyro.infer.SVI` with the same constructor and methods, for pairs that own their parameters.

    It takes a :class:`torch.optim.Optimizer` over the pair's parameters (:func:`pplmodels.infer.adam` builds one) and
    differs from the stock class as follows:

    - Parameters stay in their modules and are not added to Pyro's global param store, so several pairs can be trained
      in one process, and notebook cells can be run repeatedly.
    - Gradients are those of the stock class. With ``clip_norm``, each parameter group's gradient of the loss *per
      image* is clipped to that norm.
    - Losses are returned in nats per image, as tensors on the device. Only reading a value with ``float`` synchronizes
      with the device. The number of images is the full size of the plate named "data"; without that plate, losses are
      totals.
    - After a non-finite loss (or, with ``clip_norm``, a non-finite gradient), :attr:`failed` is true and parameters are
      no longer updated, so that the last finite weights are kept and can be inspected.
    - Arguments of distributions and shapes of observations are only validated in the first step, because these checks
      synchronize with the device.
    - The first step raises an error if the loss depends on a parameter that the optimizer does not have.
    - With ``compile``, the loss and all gradients are traced once into a flat graph, which is then replayed
      (:class:`pplmodels.infer.compile.program.CompiledProgram`, docs/engine.md). This gives the same results without
      the Python overhead of Pyro and autograd.

    Arguments:
        model, guide: modules with Pyro primitives.
        optim: a torch optimizer. Use the stock class with a :class:`pyro.optim.PyroOptim`.
        loss: an ELBO of Pyro, by default ``TraceGraph_ELBO()``, or an :class:`Objective` of your own, a function of
            model, guide and arguments that returns a loss and its surrogate, or, as for the stock class, one
            differentiable loss. An ELBO with its own ``loss_and_grads`` or ``differentiable_loss`` is trained with
            these methods, uncompiled.
        clip_norm: maximum gradient norm per parameter group, in nats per image per unit; None for no limit.
        compile: replay a traced graph. If this is not possible, True raises an error, and "auto" warns once and runs
            uncompiled. "fused" is like "auto", and after 32 steps the graph is compiled by torch's inductor in a
            background process, which fuses its operations and takes minutes. From then on, the step is faster and gives
            the same results up to rounding. It needs a C++ compiler, and runs on a CPU only.
        precision: bfloat16 for autocast of the step (:class:`torch.autocast`, on a CPU except for recurrent layers).
            Parameters, gradients and :meth:`evaluate_loss` keep their precision.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: torch.optim.Optimizer,
        loss: ELBO | Objective | Callable[..., Tensor] | None = None,
        *,
        clip_norm: float | None = None,
        compile: bool | str = False,
        precision: torch.dtype | None = None,
    ):
        if compile not in (True, False, "auto", "fused"):
            raise ValueError(f'compile must be True, False, "auto" or "fused", not {compile!r}')
        loss = TraceGraph_ELBO() if loss is None else loss
        if not isinstance(optim, torch.optim.Optimizer):
            raise ValueError(
                f"optim must be a torch.optim.Optimizer, not {optim!r}: use pyro.infer.SVI with Pyro's optimizers"
            )
        if isinstance(optim, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS evaluates the loss several times per step, but the loss is random: use another optimizer"
            )
        check_objective(loss)
        if compile and (refusal := why_uncompiled(loss)):
            if compile is True:
                raise ValueError(refusal)
            warnings.warn(f"{refusal} It runs uncompiled.", stacklevel=2)
            compile = False
        super(pyro.infer.SVI, self).__init__()  # the stock constructor requires a PyroOptim
        self.model, self.guide, self.optim = model, guide, optim
        self.elbo = loss
        self.loss = getattr(loss, "loss", loss)
        self.loss_and_grads = getattr(loss, "loss_and_grads", None)
        self.clip_norm, self.precision = clip_norm, precision
        self.failed = torch.zeros((), dtype=torch.bool, device=optim.param_groups[0]["params"][0].device)
        self._checked = False
        self._run = self._differentiate
        if compile:
            tolerance = 8 * torch.finfo(precision).eps if precision else None
            fallback = compile in ("auto", "fused")
            self._run = CompiledProgram(self._differentiate, self._read, fallback, tolerance, compile == "fused")

    def step(self, *args, **kwargs) -> Tensor:
        """Take one gradient step; returns the loss in nats per image. The arguments are passed to model and guide."""
        # before the run, which can then reuse the memory of the last gradients while it is still in the cache
        self.optim.zero_grad(set_to_none=True)
        loss, images, gradients = self.gradients(*args, **kwargs)
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient
        with default_device(self.failed.device):
            self._update(loss, images)
        return loss.clone()  # on CUDA the next replay overwrites the loss

    def gradients(self, *args, **kwargs) -> tuple[Tensor, int, tuple[Tensor | None, ...]]:
        """One estimate of the loss per image, the number of images, and the gradient of the total loss with respect to
        each of :meth:`parameters` (None if the loss does not depend on it). On CUDA, the next estimate of a compiled
        pair overwrites the result. In distributed training, all results refer to the images of all ranks.
        """
        run = self._run
        if isinstance(run, CompiledProgram) and (refusal := why_uncompiled(self.elbo)):  # the ELBO was replaced
            if not run.fallback:
                raise ValueError(refusal)
            run = self._differentiate
        with default_device(self.failed.device):
            loss, images, gradients = _of_all_ranks(*run(*args, **kwargs), self.parameters())
        # not part of the traced run, because replayed kernels may have other memory orders than traced ones
        return loss, images, tuple(map(_laid_out_like, gradients, self.parameters()))

    @property
    def fusion(self) -> str:
        """What has become of fusing the step, as a sentence; "" if it has not begun."""
        return self._run.fusion if isinstance(self._run, CompiledProgram) else ""

    def fuse(self, seconds: float) -> None:
        """Fuse a compiled step as with ``compile="fused"``, if that pays within the next ``seconds`` of training."""
        if isinstance(self._run, CompiledProgram):
            self._run.fuse(seconds)

    def evaluate_loss(self, *args, **kwargs) -> Tensor:
        """The loss in nats per image, from one sample of the guide, without gradients and without changing the pair."""
        with torch.no_grad(), unchanged(self.model, self.guide, self.elbo), Fitting():
            loss, _, images = self._losses(args, kwargs)
            return loss.to(self.failed.device) / images

    def parameters(self) -> list[Tensor]:
        """The parameters that a step updates: those of the optimizer that are not frozen."""
        return [p for group in self.optim.param_groups for p in group["params"] if p.requires_grad]

    def _read(self) -> dict[str, object]:
        """The objects that a step depends on besides its arguments."""
        learned = {f"parameter {number}": p for number, p in enumerate(self.parameters())}
        pair = {"model": self.model, "guide": self.guide, "loss": self.elbo, "precision": self.precision}
        return {**pair, **learned}

    def _differentiate(self, *args, **kwargs) -> tuple[Tensor, int, tuple[Tensor | None, ...]]:
        first, self._checked = not self._checked, True
        try:
            if first and self.precision and is_validation_enabled():
                self._validate(args, kwargs)
            return self._estimate(args, kwargs, first)
        except Exception:
            self._checked = not first and self._checked
            raise

    def _validate(self, args: tuple, kwargs: dict) -> None:
        """Run the pair once with all of Pyro's checks, in full precision, and restore its state.

        In lower precision the checks fail, e.g. because probabilities do not sum to 1.
        """
        state = State(self._read())
        before = Snapshot.of(state)
        with torch.no_grad(), Fitting():
            self._losses(args, kwargs)
        state.restore_bindings()
        before.restore()

    def _estimate(self, args: tuple, kwargs: dict, first: bool) -> tuple[Tensor, int, tuple[Tensor | None, ...]]:
        """Loss, images and gradients. The first step also checks distributions, observations and parameters."""
        rough = _autocast(self.failed.device.type, self.precision) if self.precision else nullcontext()
        validation = nullcontext() if first and not self.precision else _unvalidated()
        parameters = self.parameters()
        with validation, rough, Stated() as stated, Fitting() if first else nullcontext():
            loss, surrogate, images = self._losses(args, kwargs)
            if not surrogate.requires_grad:
                if not torch.is_grad_enabled():
                    raise ValueError("there are no gradients under torch.no_grad() or torch.inference_mode()")
                raise ValueError(
                    "the loss does not depend on any parameter: no site of model or guide does, or all parameters "
                    "are frozen"
                )
            if first:
                self._check_trained(surrogate, parameters, stated.names)
            gradients = torch.autograd.grad(surrogate, parameters, allow_unused=True)
        if first:
            self._check_dense(gradients, parameters, stated.names)
        return loss.detach() / images, images, gradients

    def _losses(self, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, int]:
        """The loss, a surrogate with the estimator's gradients, and the number of images over which both are summed."""
        with local_params(), memoise(), _Images() as counted:
            loss, surrogate = loss_and_surrogate(self.elbo, self.parameters(), self.model, self.guide, args, kwargs)
        return loss, surrogate, counted.number

    def _check_trained(self, surrogate: Tensor, parameters: list[Tensor], stated: dict[int, str]) -> None:
        known = {id(p) for p in parameters}
        left = [leaf for leaf in leaves(surrogate) if id(leaf) not in known]
        names = self._names(stated) if left else {}
        if found := sorted(
            names[id(leaf)] for leaf in left if id(leaf) in names
        ):  # other leaves were created by the program
            raise ValueError(
                f"the optimizer does not have {', '.join(found)}, which would never be updated: pass all parameters to "
                "it (an AutoGuide has none before it is called once; a pyro.param must be a PyroParam of the module), "
                "or freeze the others with requires_grad_(False)"
            )

    def _check_dense(self, gradients: tuple, parameters: list[Tensor], stated: dict[int, str]) -> None:
        for gradient, parameter in zip(gradients, parameters, strict=True):
            if gradient is not None and gradient.layout is not torch.strided:
                name = self._names(stated).get(id(parameter), "a parameter")
                raise ValueError(f"{name} has a sparse gradient, which cannot be clipped or replayed: use sparse=False")

    def _names(self, stated: dict[int, str]) -> dict[int, str]:
        """The names of parameters by their ids."""
        state = State({"model": self.model, "guide": self.guide, "loss": self.elbo})
        return stated | {id(tensor): state.tensor_name(index) for index, tensor in enumerate(state.tensors)}

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
            # Fused optimizers skip a step if this flag on the device is set, as torch.amp.GradScaler does.
            self.optim.found_inf = self.failed.float()
            self.optim.grad_scale = None
        elif self.failed:
            return
        self.optim.step()


def _of_all_ranks(
    loss: Tensor, images: int, gradients: tuple[Tensor | None, ...], parameters: list[Tensor]
) -> tuple[Tensor, int, tuple[Tensor | None, ...]]:
    """Combine the estimates of all ranks by a single reduction. Gradients that are None become 0 on all ranks."""
    if distributed.world_size() == 1:
        return loss, images, gradients
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    images *= distributed.world_size()  # all ranks have equally many
    total, *summed = distributed.all_reduce_list([loss, *filled])
    return total / distributed.world_size(), images, tuple(summed)


def _laid_out_like(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The gradient in the parameter's memory layout, which fused optimizers expect.

    Convolutions of channels-last inputs return weight gradients in the channels-last layout.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


@contextmanager
def _autocast(device: str, precision: torch.dtype) -> Iterator[None]:
    """Autocast that keeps recurrent layers on a CPU in float32, because not every processor has other kernels."""
    with torch.autocast(device, precision), ExitStack() as stack:
        for name in RECURRENT if device == "cpu" else ():
            stack.enter_context(patch.object(torch._VF, name, _in_float32(getattr(torch._VF, name))))
        yield


def _in_float32(function: Callable) -> Callable:
    def precise(*args):
        with torch.autocast("cpu", enabled=False):
            return function(*tree_map_only(Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, args))

    return precise


class _Images(Messenger):
    """Records the number of images in a bound: the size of the plate named "data", or 1 if there is none.

    A plate with subsampling counts with its full size, because the bound is scaled up to it. For a plate without a
    size, the batch shape of the sites inside is used.
    """

    number = 1

    def _pyro_post_sample(self, msg) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == "data":
                self.number = frame.full_size or frame.size
                if self.number < 0:
                    shape = msg["value"].shape[: msg["value"].dim() - msg["fn"].event_dim]
                    shape = torch.broadcast_shapes(shape, msg["fn"].batch_shape)
                    self.number = shape[frame.dim] if len(shape) >= -frame.dim else 1


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Disable validation of distributions, including those created outside of this context."""
    with pyro.validation_enabled(False), patch.object(Distribution, "_validate_sample", lambda self, value: None):
        yield
