"""The contract of a model/guide pair, as checks that the tests of any package can run on its own pairs.

:func:`check_contract` is all that a test needs. It does not depend on a test framework::

    import torch
    from my_package import MyGuide, MyModel
    from pplmodels.testing import Pair, check_contract

    def test_my_pair_keeps_the_contract():
        check_contract(
            Pair(
                model=lambda: MyModel(image=(1, 4, 4), z_dim=2),
                guide=lambda model: MyGuide(image=(1, 4, 4), z_dim=2),
                batch=lambda n: torch.rand(n, 1, 4, 4),
            )
        )

The single checks are in :data:`CONTRACT`, for tests that run and report them one by one.
"""

import copy
import inspect
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pplmodels.defaults import default_dtype
from pplmodels.infer import SVI, PerSite_ELBO, adam
from pplmodels.infer.compile.program import CompiledProgram
from pplmodels.infer.looking import unchanged
from pplmodels.infer.traces import pair_traces
from pplmodels.inspect import check_pair
from pplmodels.metrics import compiled_log_probs, elbo_terms, log_probs
from pplmodels.module import PairModule
from pplmodels.registry import load_pair
from pplmodels.rng import fork_rng, seed_all
from pplmodels.sites import base_site_name, random_sites

ROLES = ("model", "guide")


@dataclass(frozen=True)
class Pair:
    """How to build a pair and a batch for it.

    Each check builds a new pair, so the smallest sizes at which the pair has all its parts make the checks fast.

    Arguments:
        model: returns a new model.
        guide: returns a new guide for the given model.
        batch: returns a batch ``(n, ...)`` of n random images.
        stops: whether the guide has a chain of stops, as AIR's z_pres, with a baseline. The pair is then also trained
            with PerSite_ELBO, whose baselines are those of NVIL, and with the stops summed out.
        choices: whether it also has sites marked as choices, which can be summed out or sampled.
        saved: whether the constructor arguments describe model and guide, so that they can be saved and loaded. Modules
            that are constructor arguments cannot be saved.
        exact: whether a compiled step is to be equal to the uncompiled one bit for bit. It can only be equal up to
            rounding if torch has a kernel that cannot be traced (LSTM), or if a tensor is broadcast in several ways,
            where autograd may add its gradients up in another order.
    """

    model: Callable[[], PyroModule]
    guide: Callable[[Any], PyroModule]
    batch: Callable[[int], Tensor]
    stops: bool = False
    choices: bool = False
    saved: bool = True
    exact: bool = True

    def build(self) -> tuple[PyroModule, PyroModule]:
        """A new model and a new guide for it."""
        model = self.model()
        return model, self.guide(model)


class Estimator(NamedTuple):
    """An ELBO that pairs are trained with.

    ``needs`` is the field of :class:`Pair` that must be true, or None if the ELBO is suited to any pair. ``baselines``
    is whether the ELBO trains the guide's neural baselines, whose parameters have "baseline" in their names. Sites of
    the guide with one of the marks ``summed`` in their ``infer`` are summed out by a PerSite_ELBO.
    """

    elbo: Callable[..., ELBO]
    needs: str | None = None
    baselines: bool = False
    summed: tuple[str, ...] = ()

    def build(self, guide: PyroModule, x: Tensor) -> ELBO:
        """A new ELBO for a guide."""
        if not self.summed:
            return self.elbo()
        with torch.no_grad(), unchanged(guide):
            sites = list(random_sites(poutine.trace(guide).get_trace(x)))
        names = [base_site_name(name) for name, site in sites if any(site["infer"].get(mark) for mark in self.summed)]
        return self.elbo(estimators=dict.fromkeys(names, "enum"))


# The key is a part of the names of checks.
ESTIMATORS = {
    "trace": Estimator(Trace_ELBO),
    "tracegraph": Estimator(TraceGraph_ELBO, baselines=True),
    "nvil": Estimator(PerSite_ELBO, needs="stops", baselines=True),
    "summed out": Estimator(PerSite_ELBO, needs="stops", summed=("stop", "choice")),
    "stops summed out": Estimator(PerSite_ELBO, needs="choices", summed=("stop",)),
}


@dataclass(frozen=True)
class Check:
    """One check of the contract, which is called with a :class:`Pair`.

    It raises AssertionError with a sentence that says what is broken. If the pair raises an exception, this is the
    cause of the AssertionError. Each check runs from the seed 0, with an empty parameter store and with Pyro's
    validation, and restores the random generators and the store.

    Arguments:
        name: the name of the check, followed by the name of the estimator if it has one.
        function: what is called with the pair.
        needs: the field of :class:`Pair` that must be true, or None if the check applies to any pair.
        cuda: whether the check needs a CUDA device.
    """

    name: str
    function: Callable[[Pair], None]
    needs: str | None = None
    cuda: bool = False

    def __call__(self, pair: Pair) -> None:
        """Raise AssertionError if the pair breaks the contract."""
        with fork_rng(), pyro.get_param_store().scope(), pyro.validation_enabled(True):
            seed_all(0)
            try:
                self.function(pair)
            except AssertionError:
                raise
            except Exception as error:  # any exception of user code breaks the contract
                problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                raise AssertionError(f"The pair fails in the check {self.name}: {problem}") from error

    def __str__(self) -> str:
        """The name of the check."""
        return self.name

    def applies_to(self, pair: Pair) -> bool:
        """Whether the check makes sense for a pair with these flags."""
        return self.needs is None or getattr(pair, self.needs)


def check_contract(pair: Pair) -> None:
    """Run all checks of :data:`CONTRACT` that apply to the pair, those on a CUDA device only if there is one.

    Raises AssertionError at the first check that fails, with a sentence that says what is broken. A small pair without
    stops takes a few seconds.

    >>> from guides import MLPGuide
    >>> from pplmodels import MLPVAE
    >>> sizes = {"image": (1, 4, 4), "hidden_dims": (8,)}
    >>> check_contract(
    ...     Pair(
    ...         model=lambda: MLPVAE(**sizes, z_dim=3),
    ...         guide=lambda model: MLPGuide(**sizes, z_dim=2),
    ...         batch=lambda n: torch.rand(n, 1, 4, 4).round(),
    ...     )
    ... )
    Traceback (most recent call last):
    AssertionError: z has event shape (2,) in the guide and (3,) in the model.
    """
    for check in CONTRACT:
        if check.applies_to(pair) and (torch.cuda.is_available() or not check.cuda):
            check(pair)


def signatures_agree_and_names_differ(pair: Pair) -> None:
    """Both take ``(x=None, n=None)``, and the same optional arguments after them, and have root names of their own."""
    model, guide = pair.build()
    taken = [inspect.signature(module.forward).parameters for module in (model, guide)]
    for role, parameters in zip(ROLES, taken, strict=True):
        _require(
            list(parameters)[:2] == ["x", "n"] and all(p.default is None for p in parameters.values()),
            f"forward of the {role} takes ({', '.join(map(str, parameters.values()))}), not (x=None, n=None) and "
            "further arguments that are None by default.",
        )
    _require(
        list(taken[0]) == list(taken[1]),
        f"forward takes ({', '.join(taken[0])}) in the model and ({', '.join(taken[1])}) in the guide.",
    )
    names = [getattr(module, "_pyro_name", "") for module in (model, guide)]
    for role, name in zip(ROLES, names, strict=True):
        _require(name, f'The {role} has no root name, as in super().__init__("my_{role}") of a PyroModule.')
    _require(names[0] != names[1], f"Model and guide have the same root name {names[0]!r}.")


def check_pair_finds_no_problem(pair: Pair) -> None:
    """Sites, plates, shapes and supports agree, and what else :func:`pplmodels.inspect.check_pair` looks for."""
    problems = check_pair(*pair.build(), pair.batch(12))
    _require(not problems, " ".join(problems))


def sites_are_independent_over_images(pair: Pair) -> None:
    """All sites are in the plate "data" alone, and their other dimensions are event dimensions."""
    guide_trace, model_trace = pair_traces(*pair.build(), pair.batch(3))
    for role, trace in zip(ROLES, (model_trace, guide_trace), strict=True):
        trace.compute_log_prob()
        for name, site in random_sites(trace):
            plates, shape = [frame.name for frame in site["cond_indep_stack"]], tuple(site["log_prob"].shape)
            _require(plates == ["data"], f"{name} of the {role} is in the plates {plates}, not in 'data' alone.")
            _require(shape == (3,), f"{name} of the {role} has log-probabilities of shape {shape} for 3 images.")


def the_model_draws_as_many_images_as_asked_for(pair: Pair) -> None:
    """``model(n=n)`` returns n new images."""
    model, _ = pair.build()
    drawn = model(n=4)
    _require(isinstance(drawn, Tensor), f"model(n=4) returns {drawn!r} instead of images.")
    shape, expected = tuple(drawn.shape), tuple(pair.batch(4).shape)
    _require(shape == expected, f"model(n=4) returns a tensor of shape {shape} instead of {expected}.")


def every_parameter_moves_in_one_step(pair: Pair, estimator: Estimator) -> None:
    """A step moves each parameter that is not frozen, and adds none to Pyro's parameter store."""
    model, guide = pair.build()
    loss = estimator.build(guide, pair.batch(2))
    svi = SVI(model, guide, adam(model, guide, 1e-2), loss)
    still = _still(model, guide, lambda: svi.step(pair.batch(16)))
    still = [name for name in still if estimator.baselines or "baseline" not in name]
    _require(not still, f"A step with {type(loss).__name__} does not move {', '.join(still)}.")
    added = list(pyro.get_param_store())
    _require(not added, f"A step adds {added} to Pyro's parameter store: use parameters of the module.")


def trains_under_stock_svi(pair: Pair) -> None:
    """:class:`pyro.infer.SVI` with TraceGraph_ELBO returns a number and moves each parameter that is not frozen."""
    model, guide = pair.build()
    stock = pyro.infer.SVI(model, guide, pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-2}), TraceGraph_ELBO())
    losses = []
    still = _still(model, guide, lambda: losses.append(stock.step(pair.batch(16))))
    _require(isinstance(losses[0], float), f"pyro.infer.SVI returns the loss {losses[0]!r}, not a number.")
    _require(not still, f"A step of pyro.infer.SVI does not move {', '.join(still)}.")


@default_dtype(torch.float64)
def stock_svi_gives_the_same_loss_and_gradients(pair: Pair) -> None:
    """Our SVI's loss per image and gradients are those of the stock class, which are sums over the images."""
    model, guide = pair.build()
    twins = copy.deepcopy((model, guide))  # a step may change buffers too
    x = pair.batch(6)
    seed_all(1)
    ours = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0))
    loss = float(ours.step(x))
    seed_all(1)
    stock = TraceGraph_ELBO().loss_and_grads(*twins, x)  # what the stock class steps with
    _require(
        math.isclose(loss * 6, stock, rel_tol=1e-12, abs_tol=1e-12),
        f"The loss of 6 images is {loss} per image with our SVI, and {stock} in total with pyro.infer.SVI.",
    )
    expected = _parameters(*twins)
    for name, p in _parameters(model, guide).items():
        sentence = f"The gradient of {name} differs between our SVI and pyro.infer.SVI."
        _require_close(p.grad, expected[name].grad, sentence, rtol=1e-9, atol=1e-9)


@default_dtype(torch.float64)
def a_batch_is_its_images_one_by_one(pair: Pair) -> None:
    """In evaluation mode log p and log q of an image, at given latents, do not depend on the rest of the batch."""
    model, guide = (module.eval() for module in pair.build())
    x = pair.batch(4)
    latents = {name: site["value"] for name, site in random_sites(poutine.trace(guide).get_trace(x))}
    for role, module in zip(ROLES, (model, guide), strict=True):
        together = poutine.trace(poutine.condition(module, data=latents)).get_trace(x)
        together.compute_log_prob()
        for i in range(4):
            one = {name: value[i : i + 1] for name, value in latents.items()}
            alone = poutine.trace(poutine.condition(module, data=one)).get_trace(x[i : i + 1])
            alone.compute_log_prob()
            for name in alone.observation_nodes:
                sentence = f"The log-probability of {name} in the {role} depends on the other images of the batch."
                found = together.nodes[name]["log_prob"][i : i + 1]
                _require_close(found, alone.nodes[name]["log_prob"], sentence)


@default_dtype(torch.float64)
def many_particles_at_once_give_the_bound_of_single_ones(pair: Pair) -> None:
    """Leading dimensions are free, so that an ELBO can draw its particles in a plate outside of the data."""
    model, guide = (module.eval() for module in pair.build())
    x = pair.batch(4)
    vectorized = TraceGraph_ELBO(num_particles=600, vectorize_particles=True, max_plate_nesting=1)
    one_by_one = torch.tensor([-TraceGraph_ELBO().loss(model, guide, x) for _ in range(60)])
    error = float(one_by_one.std() * (1 / 60 + 1 / 600) ** 0.5)
    mean, bound = float(one_by_one.mean()), -vectorized.loss(model, guide, x)
    _require(
        abs(bound - mean) <= 4 * error + 1e-9 * abs(mean),
        f"The bound of 600 particles at once is {bound}, that of 60 single ones {mean} with standard error {error} of "
        "the difference.",
    )
    for module in (model, guide):
        module.train()
    for elbo in (PerSite_ELBO, TraceGraph_ELBO):
        loss = elbo(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        value = float(SVI(model, guide, adam(model, guide, 1e-3), loss).step(x))
        _require(math.isfinite(value), f"The loss of 3 particles at once with {elbo.__name__} is {value}.")


def two_pairs_in_one_process_both_train(pair: Pair) -> None:
    """A second pair has parameters of its own, and a step moves them."""
    x = pair.batch(16)
    for number in ("first", "second"):
        model, guide = pair.build()
        svi = SVI(model, guide, adam(model, guide, 1e-2))
        still = _still(model, guide, partial(svi.step, x))
        _require(not still, f"A step of the {number} pair does not move its {', '.join(still)}.")


def a_smaller_last_batch_trains(pair: Pair) -> None:
    """The loss is finite for a smaller batch, also of one image, and for the full ones that follow."""
    model, guide = pair.build()
    svi = SVI(model, guide, adam(model, guide, 1e-3), PerSite_ELBO())
    for size in (8, 8, 3, 1, 8):
        loss = float(svi.step(pair.batch(size)))
        _require(math.isfinite(loss), f"The loss of a batch of size {size} is {loss}.")


def saved_and_loaded_gives_the_same_loss(pair: Pair) -> None:
    """After a step, :func:`pplmodels.load_pair` finds everything that the loss depends on in the saved files."""
    model, guide = pair.build()
    x = pair.batch(5)
    SVI(model, guide, adam(model, guide, 1e-2), PerSite_ELBO()).step(x)
    with tempfile.TemporaryDirectory() as folder:
        for role, module in zip(ROLES, (model, guide), strict=True):
            if not isinstance(module.eval(), PairModule):
                raise AssertionError(f"The {role} is no PairModule and cannot be saved, although saved=True.")
            module.save_pretrained(folder)
        loaded = load_pair(folder)
    losses = []
    for modules in ((model, guide), loaded):
        seed_all(2)
        losses.append(TraceGraph_ELBO().loss(*modules, x))
        pyro.clear_param_store()
    _require(losses[0] == losses[1], f"The loss of a batch is {losses[0]}, and {losses[1]} with the loaded pair.")


def compiled_and_uncompiled_steps_are_the_same(pair: Pair, estimator: Estimator) -> None:
    """12 steps, each from the same state and seed: losses, gradients, parameters, moments and buffers, bit for bit.

    If the pair is not exact, losses and gradients are compared up to rounding, each step from the same weights.
    """
    model, guide = pair.build()
    elbo = partial(estimator.build, guide, pair.batch(2))
    svis = _uncompiled_and_compiled(model, guide, elbo, clip_norm=10.0)
    for step in range(12):
        x = pair.batch(7 if step % 6 == 5 else 16)  # the last batch of an epoch is smaller
        uncompiled, compiled = (_outcome(svi, x, seed=step, with_state=pair.exact) for svi in svis)
        sentence = f"Step {step} differs between compiled and uncompiled"
        if pair.exact:
            _require(uncompiled.keys() == compiled.keys(), f"{sentence} in which parameters have a gradient.")
            other = [name for name, value in uncompiled.items() if not torch.equal(value, compiled[name])]
            _require(not other, f"{sentence} in {', '.join(other)}.")
        else:
            _require_close(uncompiled, compiled, f"{sentence}.", rtol=1e-4, atol=1e-5)
            _copy_weights(*svis)
    run = svis[1]._run
    traced = len(run.graphs) if isinstance(run, CompiledProgram) else 0
    _require(traced == 2, f"Steps with two sizes of batches were traced {traced} times.")


def compiled_bounds_are_the_same(pair: Pair) -> None:
    """:func:`pplmodels.metrics.compiled_log_probs` gives the bound of :func:`pplmodels.metrics.log_probs`."""
    model, guide = (module.eval() for module in pair.build())
    batches = pair.batch(40).split(16)
    terms = []
    for run in (partial(log_probs, model, guide), compiled_log_probs(model, guide)):
        for x in batches:  # trace where there is something to trace
            run(x)
        seed_all(4)
        terms.append(elbo_terms(run, batches)[0])
    uncompiled, compiled = terms
    rounding = {"rel_tol": 0.0} if pair.exact else {"rel_tol": 1e-5, "abs_tol": 1e-12}
    _require(uncompiled.keys() == compiled.keys(), "Compiled and uncompiled bounds have other terms.")
    for name, value in uncompiled.items():
        _require(
            math.isclose(value, compiled[name], **rounding),
            f"{name} of the bound is {value}, and {compiled[name]} when it is compiled.",
        )


def eager_steps_on_cuda_do_not_wait_for_the_device(pair: Pair) -> None:
    """No operation of an uncompiled step synchronizes with the device."""
    _train_without_waiting(pair, compile=False)


def compiled_steps_on_cuda_do_not_wait_for_the_device(pair: Pair) -> None:
    """No operation of a compiled step synchronizes with the device."""
    _train_without_waiting(pair, compile=True)


def _train_without_waiting(pair: Pair, compile: bool) -> None:
    model, guide = (module.cuda() for module in pair.build())
    svi = SVI(model, guide, adam(model, guide, 1e-3), PerSite_ELBO(), compile=compile)
    x = pair.batch(8).cuda()
    for _ in range(2):  # at the second call graph and program are compared, which waits
        svi.step(x)
    torch.cuda.set_sync_debug_mode("error")  # any wait for the device inside a step raises
    try:
        loss = svi.step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _require(bool(loss.isfinite()), f"The third loss on CUDA is {float(loss)}.")


def compiled_on_cuda_is_the_uncompiled_step(pair: Pair) -> None:
    """Captured replays against eager steps from the same state and seed, up to float32's rounding."""
    model, guide = (module.cuda() for module in pair.build())
    svis = _uncompiled_and_compiled(model, guide, PerSite_ELBO)
    for step in range(10):
        x = pair.batch(16).cuda()
        _copy_weights(*svis)
        uncompiled, compiled = (_outcome(svi, x, seed=step, with_state=False) for svi in svis)
        sentence = f"Step {step} on CUDA differs between compiled and uncompiled."
        _require_close(uncompiled, compiled, sentence, rtol=1e-3, atol=1e-3)


def _require(holds: object, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)  # also under ``python -O``, which removes assert statements


def _require_close(
    first: object, second: object, sentence: str, rtol: float | None = None, atol: float | None = None
) -> None:
    """:func:`torch.testing.assert_close`, with its default tolerances, whose message starts with a sentence."""
    torch.testing.assert_close(first, second, rtol=rtol, atol=atol, msg=lambda found: f"{sentence}\n{found}")


def _parameters(model: nn.Module, guide: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by their names."""
    modules = zip(ROLES, (model, guide), strict=True)
    return {f"{role}.{name}": p for role, module in modules for name, p in module.named_parameters() if p.requires_grad}


def _still(model: nn.Module, guide: nn.Module, step: Callable[[], object]) -> list[str]:
    """The names of the parameters that a step does not move."""
    before = {name: p.detach().clone() for name, p in _parameters(model, guide).items()}
    step()
    return [name for name, p in _parameters(model, guide).items() if torch.equal(p, before[name])]


def _uncompiled_and_compiled(
    model: nn.Module, guide: nn.Module, elbo: Callable[[], ELBO], clip_norm: float | None = None
) -> tuple[SVI, SVI]:
    """The trainings of a pair and of a copy of it, of which the second is compiled."""
    twin_model, twin_guide = copy.deepcopy((model, guide))
    return (
        SVI(model, guide, adam(model, guide, 1e-3), elbo(), clip_norm=clip_norm),
        SVI(twin_model, twin_guide, adam(twin_model, twin_guide, 1e-3), elbo(), clip_norm=clip_norm, compile=True),
    )


def _copy_weights(first: SVI, second: SVI) -> None:
    """Give the second pair the parameters and buffers of the first."""
    for module, twin in ((first.model, second.model), (first.guide, second.guide)):
        twin.load_state_dict(module.state_dict())


def _outcome(svi: SVI, x: Tensor, seed: int, with_state: bool) -> dict[str, Tensor]:
    """Copies of the loss and the gradients of a step, and with its state also of all that the step may change."""
    seed_all(seed)
    outcome = {"the loss": svi.step(x)}
    parameters = _parameters(svi.model, svi.guide)
    outcome |= {f"the gradient of {name}": p.grad for name, p in parameters.items() if p.grad is not None}
    if with_state:
        for role, module in zip(ROLES, (svi.model, svi.guide), strict=True):
            outcome |= {f"{role}.{name}": value for name, value in module.state_dict().items()}
        for name, p in parameters.items():
            outcome |= {f"{key} of {name}": value for key, value in svi.optim.state.get(p, {}).items()}
    return {name: value.clone() for name, value in outcome.items()}


def _with_each_estimator(function: Callable[..., None]) -> list[Check]:
    return [
        Check(f"{function.__name__}-{name}", partial(function, estimator=estimator), estimator.needs)
        for name, estimator in ESTIMATORS.items()
    ]


def _once(function: Callable[[Pair], None], needs: str | None = None, cuda: bool = False) -> Check:
    return Check(function.__name__, function, needs, cuda)


#: All checks, in the order in which :func:`check_contract` runs them: later ones rely on earlier ones.
#:
#: :meta hide-value:
CONTRACT: tuple[Check, ...] = (
    _once(signatures_agree_and_names_differ),
    _once(check_pair_finds_no_problem),
    _once(sites_are_independent_over_images),
    _once(the_model_draws_as_many_images_as_asked_for),
    *_with_each_estimator(every_parameter_moves_in_one_step),
    _once(trains_under_stock_svi),
    _once(stock_svi_gives_the_same_loss_and_gradients),
    _once(a_batch_is_its_images_one_by_one),
    _once(many_particles_at_once_give_the_bound_of_single_ones),
    _once(two_pairs_in_one_process_both_train),
    _once(a_smaller_last_batch_trains),
    _once(saved_and_loaded_gives_the_same_loss, needs="saved"),
    *_with_each_estimator(compiled_and_uncompiled_steps_are_the_same),
    _once(compiled_bounds_are_the_same),
    _once(eager_steps_on_cuda_do_not_wait_for_the_device, cuda=True),
    _once(compiled_steps_on_cuda_do_not_wait_for_the_device, cuda=True),
    _once(compiled_on_cuda_is_the_uncompiled_step, cuda=True),
)
