"""The contract that every model/guide pair keeps."""

import copy
import inspect
import subprocess
import sys
from functools import partial

import pyro
import pytest
import torch
from pairs import PAIRS
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO

import guides
import pplmodels
from pplmodels.errors import InputError
from pplmodels.infer import NVIL_ELBO, SVI, SummedOut_ELBO, adam
from pplmodels.metrics import compiled_log_probs, elbo_terms, log_probs
from pplmodels.module import PairModule
from pplmodels.registry import load_pair

LOSSES = {
    "trace": Trace_ELBO,
    "tracegraph": TraceGraph_ELBO,
    "nvil": NVIL_ELBO,
    "summed out": SummedOut_ELBO,
    "stops summed out": partial(SummedOut_ELBO, choices=False),
}


@pytest.fixture(params=PAIRS, ids=str)
def pair(request):
    return PAIRS[request.param]


@pytest.fixture
def loss(request):
    return LOSSES[request.param]


def has(pair, loss):
    """Whether the estimator is another one than Pyro's for this pair."""
    return {"nvil": pair.stops, "summed out": pair.stops, "stops summed out": pair.choices}.get(loss, True)


# Graphs of these take seconds to trace, and differ from others in parts that every estimator has.
LARGE = ("air, residual", "air, three channels, wide canvas", "air in 3-d")
CASES = [
    pytest.param(name, loss, id=f"{name}-{loss}") for name, pair in PAIRS.items() for loss in LOSSES if has(pair, loss)
]
TRACED = [
    pytest.param(*case.values, id=case.id, marks=pytest.mark.slow if name in LARGE and loss != "nvil" else ())
    for case in CASES
    for name, loss in [case.values]
]


def parameters(*halves):
    return {f"{half.role}.{name}": p for half in halves for name, p in half.named_parameters()}


def test_the_table_holds_every_public_pair():
    public = {
        thing
        for package in (pplmodels, guides)
        for name in package.__all__
        if isinstance(thing := getattr(package, name), type) and issubclass(thing, PairModule)
    }
    assert public == {type(half) for row in PAIRS.values() for half in row.build()}


def test_halves_share_a_signature_and_have_names_of_their_own(pair):
    model, guide = pair.build()
    taken, same = (inspect.signature(half.forward).parameters for half in (model, guide))
    assert list(taken) == list(same) and list(taken)[:2] == ["x", "n"]
    assert all(parameter.default is None for parameter in taken.values())
    assert model._pyro_name and guide._pyro_name and model._pyro_name != guide._pyro_name


def test_sites_agree_and_every_one_is_independent_over_images(pair):
    model, guide = pair.build()
    x = pair.batch(3)
    guide_trace = poutine.trace(guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    latent = {name for name in model_trace.stochastic_nodes if name != "data"}
    assert latent == {name for name in guide_trace.stochastic_nodes if name != "data"}
    for trace in (model_trace, guide_trace):
        trace.compute_log_prob()
        for name in trace.stochastic_nodes + trace.observation_nodes:
            if name != "data":
                assert trace.nodes[name]["log_prob"].shape == (3,), name
                assert [frame.name for frame in trace.nodes[name]["cond_indep_stack"]] == ["data"]


def test_the_model_draws_as_many_images_as_asked_for(pair):
    model, _ = pair.build()
    assert model(n=4).shape == pair.batch(4).shape


@pytest.mark.parametrize("pair, loss", CASES, indirect=True)
def test_every_parameter_moves_in_one_step(pair, loss):
    model, guide = pair.build()
    svi = SVI(model, guide, adam(model, guide, 1e-2), loss())
    before = {name: p.detach().clone() for name, p in parameters(model, guide).items()}
    svi.step(pair.batch(16))
    baselines_learn = loss in (TraceGraph_ELBO, NVIL_ELBO)
    still = [n for n, p in parameters(model, guide).items() if torch.equal(p, before[n])]
    assert [name for name in still if baselines_learn or "baseline" not in name] == []
    assert len(pyro.get_param_store()) == 0


def test_trains_under_stock_svi_too(pair):
    model, guide = pair.build()
    before = {name: p.detach().clone() for name, p in parameters(model, guide).items()}
    stock = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceGraph_ELBO())
    assert isinstance(stock.step(pair.batch(16)), float)
    assert [name for name, p in parameters(model, guide).items() if torch.equal(p, before[name])] == []


@pytest.mark.kernels
def test_stock_svi_gives_the_same_loss_and_gradients(pair, float64):
    model, guide = pair.build()
    twins = copy.deepcopy((model, guide))  # a step may change buffers too
    x = pair.batch(6)
    pyro.set_rng_seed(1)
    ours = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0))
    loss = ours.step(x)
    pyro.set_rng_seed(1)
    stock = TraceGraph_ELBO().loss_and_grads(*twins, x)  # what the stock class steps with
    assert float(loss) * 6 == pytest.approx(stock, rel=1e-12)
    expected = parameters(*twins)
    for name, p in parameters(model, guide).items():
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-9, atol=1e-9, msg=name)


def test_a_batch_is_its_images_one_by_one(pair, float64):
    """log p and log q of each image, at the same latents, do not depend on its neighbours."""
    model, guide = (half.eval() for half in pair.build())
    x = pair.batch(4)
    trace = poutine.trace(guide).get_trace(x)
    latents = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name != "data"}
    for half in (model, guide):
        together = poutine.trace(poutine.condition(half, data=latents)).get_trace(x)
        together.compute_log_prob()
        for i in range(4):
            one = {name: value[i : i + 1] for name, value in latents.items()}
            alone = poutine.trace(poutine.condition(half, data=one)).get_trace(x[i : i + 1])
            alone.compute_log_prob()
            for name in alone.observation_nodes:
                torch.testing.assert_close(together.nodes[name]["log_prob"][i : i + 1], alone.nodes[name]["log_prob"])


def test_many_particles_at_once_give_the_bound_of_many_single_ones(pair, float64):
    """Leading dimensions are free: a plate of particles outside the data."""
    model, guide = (half.eval() for half in pair.build())
    x = pair.batch(4)
    vectorised = TraceGraph_ELBO(num_particles=600, vectorize_particles=True, max_plate_nesting=1)
    one_by_one = torch.tensor([-TraceGraph_ELBO().loss(model, guide, x) for _ in range(60)])
    error = one_by_one.std() * (1 / 60 + 1 / 600) ** 0.5
    mean = float(one_by_one.mean())
    assert -vectorised.loss(model, guide, x) == pytest.approx(mean, abs=4 * float(error) + 1e-9 * abs(mean))
    few = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    for half in (model, guide):
        half.train()
    for loss in (NVIL_ELBO, TraceGraph_ELBO):
        assert SVI(model, guide, adam(model, guide, 1e-3), loss(**few)).step(x).isfinite()


def test_two_pairs_in_one_process_both_train(pair):
    x = pair.batch(16)
    for _ in range(2):
        model, guide = pair.build()
        svi = SVI(model, guide, adam(model, guide, 1e-2))
        before = {name: p.detach().clone() for name, p in parameters(model, guide).items()}
        svi.step(x)
        assert not any(torch.equal(p, before[name]) for name, p in parameters(model, guide).items())


def test_a_smaller_last_batch_trains(pair):
    model, guide = pair.build()
    svi = SVI(model, guide, adam(model, guide, 1e-3), NVIL_ELBO())
    assert all(torch.isfinite(svi.step(pair.batch(size))) for size in (8, 8, 3, 1, 8))


@pytest.mark.kernels
def test_a_step_in_bfloat16_is_nearly_the_step_and_what_is_measured_is_the_same(pair):
    losses = {"step": [], "measured": []}
    for precision in (None, torch.bfloat16):
        pyro.set_rng_seed(0)
        halves, x = pair.build(), pair.batch(32)
        svi = SVI(*halves, adam(*halves, 1e-2), NVIL_ELBO(), compile=True, precision=precision)
        losses["measured"].append(float(svi.evaluate_loss(x)))
        losses["step"].append(float(svi.step(x)))
        assert {tensor.dtype for half in halves for tensor in half.state_dict().values()} <= {
            torch.float32,
            torch.int64,
        }
        assert not svi.failed
    assert losses["measured"][0] == losses["measured"][1]
    assert losses["step"][0] != losses["step"][1] == pytest.approx(losses["step"][0], rel=0.02)


def test_saved_and_rebuilt_gives_the_same_loss(pair, tmp_path):
    if not pair.saved:
        pytest.skip("made of parts")
    model, guide = pair.build()
    x = pair.batch(5)
    SVI(model, guide, adam(model, guide, 1e-2), NVIL_ELBO()).step(x)
    for half in (model, guide):
        half.eval().save_pretrained(tmp_path)
    again = load_pair(tmp_path)
    losses = []
    for halves in ((model, guide), again):
        pyro.set_rng_seed(2)
        losses.append(TraceGraph_ELBO().loss(*halves, x))
        pyro.clear_param_store()
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "before", ["", "import guides; assert guides.mine; "], ids=["", "with a guides.py of one's own"]
)
def test_a_stranger_needs_to_import_nothing_else(tmp_path, before):
    for half in PAIRS["air"].build():
        half.save_pretrained(tmp_path / "run")
    if before:
        (tmp_path / "guides.py").write_text("mine = True")
    code = f"{before}from pplmodels.registry import load_pair; print(load_pair('run')[1]._pyro_name)"
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert found == "air_guide\n"


def test_a_pair_of_parts_is_rebuilt_from_its_parts(tmp_path):
    row = PAIRS["vae, of parts"]
    halves = row.build()
    for half, other, parts in zip(halves, row.build(), ("prior decoder likelihood", "encoder"), strict=True):
        half.save_pretrained(tmp_path)
        modules = {name.removeprefix("code_"): getattr(other, name) for name in parts.split()}
        with pytest.raises(InputError, match="does not say what a VAE"):
            type(half).from_pretrained(tmp_path)
        again = type(half).from_pretrained(tmp_path, **modules)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in half.state_dict().items())


def test_weights_that_are_cut_short_or_of_another_class_are_refused(pair, tmp_path):
    if not pair.saved:
        pytest.skip("made of parts")
    model, _ = pair.build()
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"guide\.json cannot be read"):
        load_pair(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(InputError, match="does not hold the weights"):
        load_pair(tmp_path)


def test_the_bound_splits_into_its_sites(pair):
    model, guide = pair.build()
    terms, _ = elbo_terms(partial(log_probs, model, guide), pair.batch(50).split(17))
    assert terms["elbo"] == pytest.approx(terms["reconstruction"] - terms["kl"], rel=1e-12)
    assert terms["kl"] == pytest.approx(sum(v for name, v in terms.items() if name.startswith("kl/")), rel=1e-9)


@pytest.mark.kernels
@pytest.mark.parametrize("pair, loss", TRACED, indirect=True)
def test_compiled_and_uncompiled_are_the_same_numbers(pair, loss):
    """12 steps, each from the same state and seed: losses, gradients, parameters, moments and buffers, bit for bit.

    Where kernels round differently, the losses and gradients are compared, each step from the same weights.
    """
    halves = pair.build()
    again = copy.deepcopy(halves)
    runs = []
    for (model, guide), compiled in ((halves, False), (again, True)):
        optim = adam(model, guide, 1e-3)
        runs.append((SVI(model, guide, optim, loss(), clip_norm=10.0, compile=compiled), optim, model, guide))
    for step in range(12):
        x = pair.batch(7 if step % 6 == 5 else 16)  # the last batch of an epoch is smaller
        outcomes = []
        for svi, optim, model, guide in runs:
            pyro.set_rng_seed(step)
            outcomes.append([svi.step(x)])
            outcomes[-1] += [p.grad for p in (*model.parameters(), *guide.parameters()) if p.grad is not None]
            if pair.exact:
                outcomes[-1] += [*model.state_dict().values(), *guide.state_dict().values()]
                outcomes[-1] += [t for state in optim.state.values() for t in state.values()]
            outcomes[-1] = [tensor.clone() for tensor in outcomes[-1]]
        if pair.exact:
            assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True)), f"step {step}"
        else:
            torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)
            for half, twin in zip(halves, again, strict=True):
                twin.load_state_dict(half.state_dict())
    assert len(runs[1][0]._run.graphs) == 2


@pytest.mark.kernels
def test_compiled_bounds_are_the_same_numbers(pair):
    model, guide = (half.eval() for half in pair.build())
    batches = pair.batch(40).split(16)
    terms = []
    for run in (partial(log_probs, model, guide), compiled_log_probs(model, guide)):
        for x in batches:  # trace where there is something to trace
            run(x)
        pyro.set_rng_seed(4)
        terms.append(elbo_terms(run, batches)[0])
    assert terms[0] == (terms[1] if pair.exact else pytest.approx(terms[1], rel=1e-5))


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_trains_on_cuda_without_waiting_for_the_device(pair, compiled):
    model, guide = (half.cuda() for half in pair.build())
    svi = SVI(model, guide, adam(model, guide, 1e-3), NVIL_ELBO(), compile=compiled)
    x = pair.batch(8).cuda()
    for _ in range(2):  # at the second call graph and program are compared, which waits
        svi.step(x)
    torch.cuda.set_sync_debug_mode("error")  # any wait for the device inside a step raises
    try:
        loss = svi.step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.gpu
def test_compiled_on_cuda_is_the_uncompiled_step(pair):
    """Captured replays against eager steps from the same state and seed, up to float32's rounding."""
    halves = [half.cuda() for half in pair.build()]
    again = copy.deepcopy(halves)
    svis = [
        SVI(*pair_, adam(*pair_, 1e-3), NVIL_ELBO(), compile=c)
        for pair_, c in zip((halves, again), (False, True), strict=True)
    ]
    for step in range(10):
        x = pair.batch(16).cuda()
        for half, twin in zip(halves, again, strict=True):
            twin.load_state_dict(half.state_dict())
        outcomes = []
        for svi in svis:
            pyro.set_rng_seed(step)
            loss = svi.step(x)
            outcomes.append([loss, *(p.grad.clone() for p in svi.parameters() if p.grad is not None)])
        torch.testing.assert_close(*outcomes, rtol=1e-3, atol=1e-3)
