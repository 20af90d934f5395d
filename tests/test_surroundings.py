"""Pairs under another default dtype and another default device than torch's own."""

from functools import partial

import pytest
import torch
from pairs import PAIRS
from safetensors.torch import load_file, save_file
from torch import nn

from pplmodels import AIR3D, MLPVAE, inspect
from pplmodels.errors import InputError
from pplmodels.infer import SVI, PerSite_ELBO, adam
from pplmodels.metrics import compiled_log_probs, elbo_terms, importance_weighted, log_probs
from pplmodels.module import PairModule
from pplmodels.registry import load_pair

SAVED = [name for name, pair in PAIRS.items() if pair.saved]
TRACED = ("air", "vae, rows", "ladder vae", "vq-vae, running means")  # one of each kind of what a graph holds
RUNS = [(name, False) for name in PAIRS] + [(name, True) for name in TRACED]


@pytest.fixture
def elsewhere():
    """Makes the meta device torch's default, which stands for any that the pair is not on, until the test ends."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


def built(name, dtype=torch.float32, batch=4):
    """A pair of the table, and a batch for it, built where ``dtype`` is the default."""
    torch.set_default_dtype(dtype)
    try:
        return (*PAIRS[name].build(), PAIRS[name].batch(batch))
    finally:
        torch.set_default_dtype(torch.float32)


def tensors(*modules):
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def floating_dtypes(*modules):
    return {tensor.dtype for tensor in tensors(*modules) if tensor.is_floating_point()}


def weights_of(*modules, x):
    torch.manual_seed(1)
    log_p, log_q, _ = log_probs(*modules, x)
    return sum(log_p.values()) - sum(log_q.values())


@pytest.mark.parametrize(("name", "compiled"), RUNS)
def test_trains_where_float64_is_the_default(name, compiled, float64):
    model, guide, x = *PAIRS[name].build(), PAIRS[name].batch(4)
    svi = SVI(model, guide, adam(model, guide, 1e-3), PerSite_ELBO(), compile=compiled)
    for _ in range(2):
        assert svi.step(x).isfinite()
    assert floating_dtypes(model, guide) == {torch.float64}
    assert {p.grad.dtype for p in svi.parameters() if p.grad is not None} == {torch.float64}


@pytest.mark.parametrize("name", SAVED)
def test_a_float64_pair_comes_back_in_float64_where_float32_is_the_default(name, tmp_path):
    model, guide, x = built(name, torch.float64)
    for module in (model.eval(), guide.eval()):
        module.save_pretrained(tmp_path)
    again = load_pair(tmp_path)
    assert torch.get_default_dtype() == torch.float32
    for tensor, found in zip(tensors(model, guide), tensors(*again), strict=True):
        assert tensor.dtype == found.dtype and torch.equal(tensor, found)
    assert torch.equal(weights_of(model, guide, x=x), weights_of(*again, x=x))
    assert SVI(*again, adam(*again, 1e-3), PerSite_ELBO()).step(x).isfinite()
    assert floating_dtypes(*again) == {torch.float64}


def test_a_float32_pair_comes_back_in_float32_where_float64_is_the_default(tmp_path, float64):
    for module in built("air in 3-d")[:2]:
        module.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.float64)
    assert floating_dtypes(*load_pair(tmp_path)) == {torch.float32}
    assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_module_comes_back_as_it_was(dtype, tmp_path):
    model = AIR3D(image=(4, 6)).to(dtype)
    model.save_pretrained(tmp_path)
    again = AIR3D.from_pretrained(tmp_path)
    for tensor, found in zip(tensors(model), tensors(again), strict=True):
        assert found.dtype == dtype and torch.equal(tensor, found)


class Mixed(PairModule):
    """Tensors of many dtypes, in all the places there are."""

    role = "model"

    def __init__(self):
        super().__init__("mixed")
        self.one, self.two = nn.Linear(3, 2), nn.Linear(2, 3)
        self.register_buffer("counts", torch.arange(4))
        self.register_buffer("exact", torch.full((2,), 1 / 3, dtype=torch.float64))
        self.register_buffer("unsaved", torch.full((2,), 1 / 3, dtype=torch.float64), persistent=False)
        self.plain = torch.full((2,), 1 / 3)
        self.__dict__["shared"] = self.one.weight


def test_each_tensor_keeps_its_own_dtype(tmp_path):
    module = Mixed()
    module.two.bfloat16()
    module.save_pretrained(tmp_path)
    again = Mixed.from_pretrained(tmp_path)
    before = {**module.state_dict(), "unsaved": module.unsaved, "plain": module.plain}
    after = {**again.state_dict(), "unsaved": again.unsaved, "plain": again.plain}
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert again.shared is again.one.weight


def test_plain_tensors_follow_the_weights(tmp_path, float64):
    Mixed().save_pretrained(tmp_path)
    torch.set_default_dtype(torch.float32)
    assert Mixed.from_pretrained(tmp_path).plain.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn, torch.bool])
def test_weights_that_are_no_weights_are_refused(dtype, tmp_path):
    MLPVAE(image=(1, 2, 2), z_dim=2, hidden_dims=(3,)).save_pretrained(tmp_path)
    values = load_file(tmp_path / "model.safetensors")
    save_file({name: value.to(dtype) for name, value in values.items()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not contain the weights"):
        MLPVAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "compiled"), RUNS)
def test_trains_where_another_device_is_the_default(name, compiled, elsewhere):
    model, guide, x = built(name)
    elsewhere()
    loss = PerSite_ELBO(estimators={"z_pres": "enum"}) if PAIRS[name].stops else PerSite_ELBO()
    svi = SVI(model, guide, adam(model, guide, 1e-3), loss, clip_norm=10.0, compile=compiled)
    for _ in range(2):
        assert svi.step(x).isfinite()
    assert svi.evaluate_loss(x).isfinite()
    assert torch.get_default_device().type == "meta"


@pytest.mark.parametrize("name", PAIRS)
def test_is_looked_at_where_another_device_is_the_default(name, elsewhere):
    model, guide, x = built(name, batch=12)
    elsewhere()
    assert inspect.check_pair(model, guide, x) == []
    inspect.graph(model, guide, x), inspect.site_table(model, guide, x)
    inspect.posterior(model, guide, x, 3), inspect.predictive(model, guide, x, 3), inspect.prior(model, 3)
    assert inspect.sample(model, 3).device.type == "cpu"
    log_prob_fn = partial(log_probs, model, guide)
    assert importance_weighted(log_prob_fn, [x], 2).bound.isfinite().all()
    measured = compiled_log_probs(model, guide) if name in TRACED else log_prob_fn
    assert "elbo" in elbo_terms(measured, [x])[0]


def test_solids_are_found_where_another_device_is_the_default(elsewhere):
    model, guide, x = built("air in 3-d")
    elsewhere()
    found = inspect.search_solids(model, x, 1, 1)
    inspect.render_solids(model, inspect.find_solids(guide, x)), inspect.count_posterior(guide, x)
    assert inspect.solid_metrics(found, found)["count_accuracy_argmax"] == 1


def test_scenes_are_seen_where_another_device_is_the_default(elsewhere):
    model, guide, x = built("air")
    elsewhere()
    view = inspect.infer_scenes(model, guide, x)
    assert inspect.sample_scenes(model, 3, 1).device == view.z_pres.device == x.device


@pytest.mark.parametrize("name", SAVED)
def test_is_loaded_on_the_cpu_whatever_the_default_device_is(name, tmp_path, elsewhere):
    model, guide, x = built(name)
    elsewhere()
    for module in (model.eval(), guide.eval()):
        module.save_pretrained(tmp_path)
    again = load_pair(tmp_path)
    assert {tensor.device.type for tensor in tensors(*again)} == {"cpu"}
    assert torch.equal(weights_of(model, guide, x=x), weights_of(*again, x=x))
