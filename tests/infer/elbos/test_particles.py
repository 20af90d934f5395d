"""Particles: compiled steps, memory, chunks, scales, plates, and the pairs and arguments that are refused."""

import math
import weakref
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from twins import Guide, Model, graphs, step_both, twins
from weighted_pairs import (
    GRADIENTS,
    LadderGuide,
    LadderModel,
    LinearGuide,
    LinearModel,
    MixedGuide,
    MixedModel,
    engine,
    estimate,
    parameters,
    reference,
)

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.infer import SVI, ImportanceWeighted_ELBO, ScaledKL

COMPILED = {
    "ladder": (LadderModel, LadderGuide, lambda: torch.randn(7)),
    "mixed": (MixedModel, MixedGuide, lambda: torch.randn(7)),
    "vae": (
        lambda: MLPVAE(image=(1, 4, 4), z_dim=3, hidden_dims=(8,)),
        lambda: MLPGuide(image=(1, 4, 4), z_dim=3, hidden_dims=(8,)),
        lambda: torch.rand(7, 1, 4, 4).round(),
    ),
    "batch norm and dropout": (Model, Guide, lambda: torch.randn(7, 4)),
}


@pytest.mark.parametrize(
    ("name", "gradient", "chunk"),
    [
        *(("ladder", gradient, None) for gradient in (*GRADIENTS, "vimco")),
        ("ladder", "gdreg", 2),
        ("mixed", "plain", None),
        ("mixed", "plain", 2),
        ("vae", "plain", 2),
        ("vae", "dreg", None),
        ("batch norm and dropout", "dreg", 1),
    ],
)
def test_compiled_steps_are_the_uncompiled_ones_to_the_bit(name, gradient, chunk):
    model, guide, batch = COMPILED[name]
    both = twins(model, guide, partial(ImportanceWeighted_ELBO, 3, gradient, chunk=chunk), clip_norm=5.0)
    x = batch()
    losses = [float(step_both(both, x, seed=step)) for step in range(3)]
    assert graphs(both) == 1 and len(set(losses)) == 3


class Peak(TorchDispatchMode):
    """The largest number of bytes that results of operations hold at once."""

    def __init__(self):
        super().__init__()
        self.held, self.now, self.largest = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.held:
                self.held.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
                self.largest = max(self.largest, self.now)
        return result

    def _free(self, key, size):
        self.held.discard(key)
        self.now -= size


@pytest.mark.parametrize("gradient", [*GRADIENTS, "vimco"])
def test_memory_is_that_of_a_chunk(gradient):
    model, guide = MLPVAE(image=(1, 12, 12), z_dim=2, hidden_dims=(8,)), MLPGuide((1, 12, 12), 2, (8,))
    x, peaks = torch.rand(16, 1, 12, 12).round(), {}
    for number, chunk in ((4, None), (64, None), (64, 4)):
        loss = ImportanceWeighted_ELBO(number, gradient, chunk=chunk, max_plate_nesting=1)
        with Peak() as peak:
            engine(model, guide, loss).gradients(x)
        peaks[number, chunk] = peak.largest
    noise = 64 * 16 * 2 * 4  # bytes of the random numbers of all particles
    assert peaks[64, 4] < 2 * peaks[4, None] + 4 * noise < peaks[64, None] / 4


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_step_in_lower_precision_is_close_to_that_in_full_precision(gradient):
    model, guide, batch = COMPILED["vae"]
    model, guide, x = model(), guide(), batch()
    found = []
    for precision in (None, torch.bfloat16):
        pyro.set_rng_seed(1)
        svi = engine(model, guide, ImportanceWeighted_ELBO(4, gradient, chunk=2), precision=precision, compile=True)
        found.append(float(svi.step(x)))
    assert found[0] != found[1] == pytest.approx(found[0], rel=0.02)


def test_chunks_change_buffers_once_and_see_the_same_dropout(float64):
    """Two particles one after another against autograd through both at once, which keeps all activations."""
    model, guide, x = Model(), Guide(), torch.randn(9, 4)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = estimate(model, guide, ImportanceWeighted_ELBO(2, chunk=1), x)
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.load_state_dict(buffers, strict=False)
    torch.testing.assert_close(found, reference((model, guide), 2, x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after, dict(model.named_buffers()))
    assert int(after["net.1.num_batches_tracked"]) == 2


@pytest.mark.parametrize("scale", [0.01, torch.tensor(0.01, dtype=torch.float64)], ids=["number", "tensor"])
@pytest.mark.parametrize("gradient", [*GRADIENTS, "vimco"])
def test_a_scale_of_the_whole_pair_multiplies_the_loss_and_not_the_weights(float64, gradient, scale):
    model, guide, x = LadderModel(), LadderGuide(), torch.randn(4)
    (loss, gradients), (scaled, of_scaled) = (scaled_by(s, model, guide, gradient, x) for s in (1.0, scale))
    assert float(scaled) == pytest.approx(0.01 * float(loss), rel=1e-12)
    torch.testing.assert_close(of_scaled, 0.01 * gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gradient", [*GRADIENTS, "vimco"])
def test_a_scale_of_each_image_multiplies_its_loss(float64, gradient):
    """The terms of the images are found by doubling one of them."""
    model, guide, x = LadderModel(), LadderGuide(), torch.randn(4)
    scale = torch.tensor([3.0, 1.0, 2.0, 0.5])
    run = partial(scaled_by, model=model, guide=guide, gradient=gradient, x=x)
    (whole, *parts), (found,) = (
        [torch.cat([loss[None], gradients]) for loss, gradients in map(run, scales)]
        for scales in ([torch.ones(4), *(1 + torch.eye(4))], [scale])
    )
    expected = sum(s * (part - whole) for s, part in zip(scale, parts, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def scaled_by(scale, model, guide, gradient, x):
    """Loss and gradients, both summed over the images."""
    pyro.set_rng_seed(1)
    pair = [poutine.scale(part, scale=scale) for part in (model, guide)]
    svi = SVI(*pair, torch.optim.SGD(parameters(model, guide), lr=0.0), ImportanceWeighted_ELBO(3, gradient))
    loss, images, gradients = svi.gradients(x)
    return images * loss, torch.cat([part.flatten() for part in gradients])


def test_an_annealed_kl_is_an_exponent_in_the_weight(float64):
    model, guide, x = LinearModel(), LinearGuide(), torch.randn(6, 3)
    found = engine(*(ScaledKL(part, 0.3) for part in (model, guide)), ImportanceWeighted_ELBO(4))
    pyro.set_rng_seed(1)
    value = found.step(x)
    pyro.set_rng_seed(1)
    with pyro.plate("particles", 4, dim=-2):
        q = poutine.trace(guide).get_trace(x)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x)
    p.compute_log_prob()
    q.compute_log_prob()
    kl = q.nodes["z"]["log_prob"] - p.nodes["z"]["log_prob"]
    weights = p.nodes["x"]["log_prob"] - 0.3 * kl
    assert float(value) == pytest.approx(-float((weights.logsumexp(0) - math.log(4)).mean().detach()), rel=1e-12)


class Subsampled(PyroModule):
    """One half of a pair of discrete and continuous sites over 8 images, of which a step sees some."""

    def __init__(self, part, index=None):
        super().__init__(type(part).__name__)
        self.part, self.index, self.seen = part, index, []

    def forward(self, x):
        size = None if self.index is not None else 2
        with pyro.plate("images", 8, subsample_size=size, subsample=self.index, dim=-1) as index:
            self.seen.append(index)
            seen = x[index]
            if isinstance(self.part, MixedGuide):
                k = pyro.sample("k", dist.Bernoulli(logits=self.part.k[0] * seen + self.part.k[1]))
                pyro.sample("z", dist.Normal(self.part.z[0] * seen + self.part.z[1] * k, self.part.z[2].exp()))
            else:
                k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
                z = pyro.sample("z", dist.Normal(self.part.loc * k, 1.0))
                pyro.sample("x", dist.Normal(z + k, 0.5), obs=seen)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("gradient", ["plain", "vimco"])
def test_subsampled_images_count_for_all(float64, gradient, chunk):
    """Two of 8 images: four times their loss and gradients, with the same noise."""
    pair, x, index = (MixedModel(), MixedGuide()), torch.linspace(-2, 2, 8), torch.tensor([6, 1])
    loss = ImportanceWeighted_ELBO(3, gradient, chunk=chunk, max_plate_nesting=1)
    value, expected = estimate(*pair, loss, x[index])
    found, gradients = estimate(*(Subsampled(part, index) for part in pair), loss, x)
    assert float(found) == pytest.approx(4 * 2 * float(value), rel=1e-12)  # a total, without a plate "data"
    torch.testing.assert_close(gradients, 4 * 2 * expected, rtol=1e-11, atol=1e-12)


def test_all_chunks_of_a_step_see_the_same_images():
    pair, x = [Subsampled(MixedModel()), Subsampled(MixedGuide())], torch.linspace(-2, 2, 8)
    loss = ImportanceWeighted_ELBO(3, chunk=1, max_plate_nesting=1)
    svi, steps = engine(*pair, loss), []
    for _ in range(4):
        for part in pair:
            part.seen.clear()
        svi.step(x)
        seen = [index for part in pair for index in part.seen]
        assert len(seen) == 12 and all(torch.equal(index, seen[0]) for index in seen)
        steps.append(tuple(seen[0].tolist()))
    assert len(set(steps)) > 1


class Words(PyroModule):
    """Each of three parts of an image has a latent: z ~ N(0, 1), x ~ N(z, 1), with the exact posterior as guide."""

    def __init__(self, is_guide, dims, subsample=None):
        super().__init__(f"words_{is_guide}")
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.is_guide, self.dims, self.subsample = is_guide, dims, subsample

    def forward(self, x):
        seen = x if self.dims[0] < self.dims[1] else x.T
        images = pyro.plate("data", len(x), dim=self.dims[0])
        words = pyro.plate("words", 3, subsample_size=self.subsample, dim=self.dims[1])
        with images, words as index:
            seen = seen.index_select(self.dims[1], index)
            if self.is_guide:
                pyro.sample("z", dist.Normal(seen / 2 + self.shift, 0.5**0.5))
            else:
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=seen)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dims", [(-2, -1), (-1, -2)])
def test_plates_inside_the_images_are_parts_of_their_weights(float64, dims, gradient):
    x = torch.randn(5, 3)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).sum(1)
    pair = [Words(is_guide, dims) for is_guide in (False, True)]
    assert float(engine(*pair, ImportanceWeighted_ELBO(3, gradient)).step(x)) == pytest.approx(-float(evidence.mean()))
    with torch.no_grad():
        pair[1].shift.fill_(0.7)
    joint = float(engine(*pair, ImportanceWeighted_ELBO(2000)).evaluate_loss(x))
    assert joint == pytest.approx(-float(evidence.mean()), abs=0.1)  # weights of all images at once would be off by 1
    part = [Words(is_guide, dims, subsample=1) for is_guide in (False, True)]
    engine(*part, ImportanceWeighted_ELBO(3, gradient, chunk=2)).step(x)


def test_other_plates_functions_and_observations_outside(float64):
    """The same pair as functions in a plate of another name, with one more observation that all images share."""
    model, guide, x = LinearModel(), LinearGuide(), torch.randn(6, 3)

    def function(x):
        pyro.module("function", model)
        pyro.sample("norm", dist.Normal(model.net.bias, 1.0).to_event(1), obs=torch.zeros(3))
        with pyro.plate("points", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(model.net(z), 0.5).to_event(1), obs=x)

    def guide_function(x):
        pyro.module("guide_function", guide)
        with pyro.plate("points", len(x)):
            pyro.sample("z", guide.q(x))

    norm = dist.Normal(model.net.bias, 1.0).log_prob(torch.zeros(3)).sum()
    for gradient in (*GRADIENTS, "vimco"):
        for chunk in (None, 1):
            loss = ImportanceWeighted_ELBO(3, gradient, chunk=chunk)
            value, expected = estimate(model, guide, loss, x)
            pyro.set_rng_seed(1)
            svi = SVI(function, guide_function, torch.optim.SGD(parameters(model, guide), lr=0.0), loss)
            other, images, gradients = svi.gradients(x)
            assert images == 1  # there is no plate "data", so the loss is a total
            assert float(other) == pytest.approx(6 * float(value) - float(norm.detach()), rel=1e-12)
            (of_norm,) = torch.autograd.grad(norm, model.net.bias, retain_graph=True)
            gradients = torch.cat([g.flatten() for g in gradients])
            gradients[6:9] += of_norm
            torch.testing.assert_close(gradients, 6 * expected, rtol=1e-10, atol=1e-10)


def test_stock_svi_takes_the_same_steps(float64):
    results = []
    for stock in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide, x = LadderModel(), LadderGuide(), torch.randn(5)
        loss = ImportanceWeighted_ELBO(3, "dreg", chunk=2)
        loss.max_plate_nesting = 1
        if stock:
            svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), loss)
        else:
            svi = SVI(model, guide, torch.optim.SGD(parameters(model, guide), lr=1e-2 * 5), loss)
        losses = []
        for step in range(3):
            pyro.set_rng_seed(step)
            losses.append(float(svi.step(x)) / (5 if stock else 1))
        results.append(losses)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)


def refused(model, guide, sentence, loss=None, *args):
    svi = engine(model, guide, loss or ImportanceWeighted_ELBO(2))
    with pytest.raises(ValueError, match=sentence):
        svi.step(*(args or (torch.randn(4),)))


class Program(PyroModule):
    """A function with one parameter."""

    def __init__(self, function):
        super().__init__(function.__name__)
        self.loc, self.function = nn.Parameter(torch.tensor(0.1)), function

    def forward(self, x):
        return self.function(self.loc, x)


def plain_model(loc, x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plain_guide(loc, x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0))


def test_pairs_without_weights_per_image_are_refused():
    def global_model(loc, x):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def global_guide(loc, x):
        pyro.sample("z", dist.Normal(loc, 1.0))

    def loop_model(loc, x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(loc, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def loop_guide(loc, x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", dist.Normal(loc, 1.0))

    def summing_model(loc, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("total", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.zeros(1))

    def shared_model(loc, x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def shared_guide(loc, x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def no_guide(loc, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("w", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})

    refused(
        Program(global_model), Program(global_guide), 'z of the guide is outside of the plate "data".*leave the data'
    )
    refused(Program(loop_model), Program(loop_guide), 'the plate "data" is a loop')
    refused(Program(summing_model), Program(plain_guide), "total of the model is outside .* depends on latents inside")
    refused(Program(shared_model), Program(shared_guide), "z has 1 values in the plate .* of 4 images")
    with pytest.warns(UserWarning):
        refused(Program(plain_model), Program(no_guide), "z is only a site of the model")


@pytest.mark.parametrize("gradient", ["stl", "dreg", "gdreg"])
def test_discrete_sites_are_refused_where_a_path_is_needed(gradient):
    sentence = f'k of the guide is not reparameterized, but gradient="{gradient}" needs the path'
    refused(MixedModel(), MixedGuide(), sentence, ImportanceWeighted_ELBO(2, gradient))


def test_gdreg_refuses_priors_without_noise():
    def gamma_model(loc, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(loc.exp(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def gamma_guide(loc, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.LogNormal(loc, 1.0))

    sentence = "needs the noise of a sample of z of the model.*not for Gamma"
    refused(Program(gamma_model), Program(gamma_guide), sentence, ImportanceWeighted_ELBO(2, "gdreg"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_particles": 0}, "num_particles must be a whole number of at least 1, not 0"),
        ({"num_particles": 2.5}, "num_particles must be a whole number"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, not 0"),
        ({"gradient": "iwae"}, "gradient must be one of plain, stl, dreg, gdreg, vimco, not 'iwae'"),
        ({"alpha": math.inf}, "alpha must be a finite number"),
        ({"gradient": "vimco", "num_particles": 1}, "num_particles must be at least 2"),
    ],
)
def test_arguments_are_refused_by_name(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ImportanceWeighted_ELBO(**arguments)
