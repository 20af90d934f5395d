"""Every pair of this project keeps the contract of pplmodels.testing, and what else holds for each of them."""

import subprocess
import sys
from functools import partial

import pyro
import pytest
import torch
from pairs import PAIRS

import guides
import pplmodels
from pplmodels.errors import InputError
from pplmodels.infer import SVI, PerSite_ELBO, adam
from pplmodels.metrics import elbo_terms, log_probs
from pplmodels.module import PairModule
from pplmodels.registry import load_pair
from pplmodels.testing import CONTRACT

# Checks that depend on how the kernels of the processor round.
KERNELS = ("stock_svi_gives_the_same_loss_and_gradients", "compiled_and_uncompiled_steps", "compiled_bounds")
# Graphs of these take seconds to trace, and differ from others in parts that every estimator has.
LARGE = (
    "air, residual",
    "air, residual, common background",
    "air, three channels, wide canvas",
    "air, background per scene, occlusion",
    "air in 3-d",
)
SMALL = ("vae, fully connected", "sigmoid belief net")  # the pairs on which particles are compiled, which takes longest


def marks(name, check):
    if check.cuda:
        yield pytest.mark.gpu
    if check.name.startswith(KERNELS):
        yield pytest.mark.kernels
    if check.name.startswith("compiled_and_uncompiled_steps"):
        large = name in LARGE and not check.name.endswith("-nvil")
        if large or (name not in SMALL and check.name.endswith("-importance-weighted")):
            yield pytest.mark.slow


CASES = [
    pytest.param(pair, check, id=f"{name}-{check}", marks=tuple(marks(name, check)))
    for name, pair in PAIRS.items()
    for check in CONTRACT
    if check.applies_to(pair)
]


@pytest.fixture(params=PAIRS, ids=str)
def pair(request):
    return PAIRS[request.param]


@pytest.mark.parametrize("pair, check", CASES)
def test_the_contract(pair, check):
    check(pair)


def test_the_table_holds_every_public_pair():
    public = {
        thing
        for package in (pplmodels, guides)
        for name in package.__all__
        if isinstance(thing := getattr(package, name), type) and issubclass(thing, PairModule)
    }
    assert public == {type(module) for pair in PAIRS.values() for module in pair.build()}


@pytest.mark.kernels
def test_a_step_in_bfloat16_is_nearly_the_step_and_what_is_measured_is_the_same(pair):
    losses = {"step": [], "measured": []}
    for precision in (None, torch.bfloat16):
        pyro.set_rng_seed(0)
        modules, x = pair.build(), pair.batch(32)
        svi = SVI(*modules, adam(*modules, 1e-2), PerSite_ELBO(), compile=True, precision=precision)
        losses["measured"].append(float(svi.evaluate_loss(x)))
        losses["step"].append(float(svi.step(x)))
        assert {tensor.dtype for module in modules for tensor in module.state_dict().values()} <= {
            torch.float32,
            torch.int64,
        }
        assert not svi.failed
    assert losses["measured"][0] == losses["measured"][1]
    assert losses["step"][0] != losses["step"][1] == pytest.approx(losses["step"][0], rel=0.02)


@pytest.mark.parametrize(
    "before", ["", "import guides; assert guides.mine; "], ids=["", "with a guides.py of one's own"]
)
def test_a_stranger_needs_to_import_nothing_else(tmp_path, before):
    for module in PAIRS["air"].build():
        module.save_pretrained(tmp_path / "run")
    if before:
        (tmp_path / "guides.py").write_text("mine = True")
    code = f"{before}from pplmodels.registry import load_pair; print(load_pair('run')[1]._pyro_name)"
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert found == "air_guide\n"


def test_a_pair_of_parts_is_rebuilt_from_its_parts(tmp_path):
    pair = PAIRS["vae, of parts"]
    for module, other, names in zip(pair.build(), pair.build(), ("prior decoder likelihood", "encoder"), strict=True):
        module.save_pretrained(tmp_path)
        parts = {name.removeprefix("code_"): getattr(other, name) for name in names.split()}
        with pytest.raises(InputError, match="has invalid arguments for a VAE"):
            type(module).from_pretrained(tmp_path)
        again = type(module).from_pretrained(tmp_path, **parts)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())


def test_weights_that_are_cut_short_or_of_another_class_are_refused(pair, tmp_path):
    if not pair.saved:
        pytest.skip("made of parts")
    model, _ = pair.build()
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"guide\.json cannot be read"):
        load_pair(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(InputError, match="does not contain the weights"):
        load_pair(tmp_path)


def test_the_bound_splits_into_its_sites(pair):
    model, guide = pair.build()
    terms, _ = elbo_terms(partial(log_probs, model, guide), pair.batch(50).split(17))
    assert terms["elbo"] == pytest.approx(terms["reconstruction"] - terms["kl"], rel=1e-12)
    assert terms["kl"] == pytest.approx(sum(v for name, v in terms.items() if name.startswith("kl/")), rel=1e-9)
