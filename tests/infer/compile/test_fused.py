"""Fused graphs: the same numbers as replayed ones up to rounding, and replayed ones where fusion fails."""

import gc
import os
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from guides import AIRGuide
from pplmodels import AIR
from pplmodels.infer import SVI, adam
from pplmodels.infer.compile import fused, program
from pplmodels.infer.compile.fused import Fusion, FusionError
from pplmodels.training import loop

needs_compiler = pytest.mark.skipif(
    os.system("c++ --version > /dev/null 2>&1") != 0 or not hasattr(torch._inductor, "standalone_compile"),
    reason="needs a C++ compiler and torch 2.8",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that the tests of this file share, so that each graph is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fused.FOLDER, str(tmp_path_factory.mktemp("cache")))
        yield


class Model(PyroModule):
    """Random numbers of equal shapes in an order that matters, dropout, and a counter that is increased in place."""

    def __init__(self):
        super().__init__("model")
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
            v = pyro.sample("v", dist.Normal(u, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(v) * self.steps.sqrt(), 1.0).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__("guide")
        self.net = nn.Linear(4, 12)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            u_loc, u_raw, v_loc, v_raw = self.net(x).chunk(4, -1)
            u = pyro.sample("u", dist.Normal(u_loc, u_raw.exp()).to_event(1))
            pyro.sample("v", dist.Normal(v_loc + u.square(), v_raw.exp()).to_event(1))


def new_svi(compile):
    pyro.set_rng_seed(0)
    model, guide = Model(), Guide()
    return SVI(model, guide, adam(model, guide, 1e-3), compile=compile)


def until_settled(svi, x):
    """Step until the fusion has ended; returns the number of steps."""
    steps = 0
    while svi.fusion in ("", fused.BEGUN):
        svi.step(x)
        steps += 1
        if svi.fusion:
            time.sleep(0.2)
    return steps


def graph_of(svi):
    (graph,) = svi._run.graphs.values()
    return graph


@needs_compiler
def test_a_fused_step_gives_the_numbers_of_the_replayed_one(cache, monkeypatch, float64):
    monkeypatch.setattr(program, "_ratio", lambda *_: 2.0)  # whether it is faster depends on the machine
    x = torch.randn(16, 4)
    svis = new_svi("fused"), new_svi(True)
    for _ in range(until_settled(svis[0], x)):
        svis[1].step(x)
    assert svis[0].fusion == "the step is fused now and takes 0.50 of the time of the replayed one"
    assert graph_of(svis[0]).is_fused
    svis[0].model.load_state_dict(svis[1].model.state_dict())
    svis[0].guide.load_state_dict(svis[1].guide.state_dict())
    for seed in range(20):
        found = []
        for svi in svis:
            pyro.set_rng_seed(seed)
            loss, _, gradients = svi.gradients(x)
            found.append([loss, *gradients, svi.model.steps.clone(), torch.rand(())])  # the last: as many were drawn
        torch.testing.assert_close(*found)  # up to the rounding of float64


@needs_compiler
def test_a_graph_in_the_cache_is_used_at_once(cache, monkeypatch, float64):
    monkeypatch.setattr(program, "_ratio", lambda *_: 2.0)
    x = torch.randn(16, 4)
    until_settled(new_svi("fused"), x)  # compiled here if the test above did not run
    monkeypatch.setattr(fused.subprocess, "Popen", lambda *_, **__: pytest.fail("compiled again"))
    svi = new_svi(True)
    for _ in range(program.FREQUENT + 1):
        svi.step(x)
    svi.fuse(0.0)  # too short for a compilation
    svi.step(x)
    svi.step(x)
    assert graph_of(svi).is_fused


@pytest.mark.parametrize(
    "factor, ratio, fused_runs, sentence",
    [
        (1.0, 1.25, True, "the step is fused now and takes 0.80 of the time of the replayed one"),
        (1.0, 0.5, False, "the step is replayed and not fused: it would take 2.00 times as long"),
        (1.05, 1.25, False, "its results differ from the program's by more than rounding"),
    ],
    ids=["faster", "slower", "different"],
)
def test_only_a_faster_graph_with_the_same_numbers_is_used(monkeypatch, factor, ratio, fused_runs, sentence):
    """The graph itself, with its results multiplied by a factor, stands for the fused one."""

    def load(self):
        def run(*inputs):
            return [None if r is None else factor * r for r in self._module(*inputs, *self._constants)]

        return run

    monkeypatch.setattr(Fusion, "begin", lambda self: None)
    monkeypatch.setattr(Fusion, "is_ready", lambda self: True)
    monkeypatch.setattr(Fusion, "load", load)
    monkeypatch.setattr(program, "_ratio", lambda *_: ratio)
    svi = new_svi("fused")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        until_settled(svi, torch.randn(16, 4))
    assert graph_of(svi).is_fused == fused_runs
    assert sentence in svi.fusion


def test_a_fused_graph_that_fails_is_not_used(monkeypatch):
    monkeypatch.setattr(Fusion, "begin", lambda self: None)
    monkeypatch.setattr(Fusion, "is_ready", lambda self: True)
    monkeypatch.setattr(Fusion, "load", lambda self: lambda *inputs: [].pop())
    x, svi, replayed = torch.randn(16, 4), new_svi("fused"), new_svi(True)
    pyro.set_rng_seed(1)
    with pytest.warns(UserWarning, match="not fused: IndexError while the fused graph runs"):
        steps = until_settled(svi, x)
    pyro.set_rng_seed(1)
    for _ in range(steps):
        replayed.step(x)
    assert all(torch.equal(a, b) for a, b in zip(svi.parameters(), replayed.parameters(), strict=True))


def test_a_graph_that_comes_to_differ_is_replayed_again(monkeypatch):
    """At a later comparison, here at call 64."""
    x, factor = torch.randn(16, 4), [1.0]

    def load(self):
        return lambda *inputs: [None if r is None else factor[0] * r for r in self._module(*inputs, *self._constants)]

    monkeypatch.setattr(Fusion, "begin", lambda self: None)
    monkeypatch.setattr(Fusion, "is_ready", lambda self: True)
    monkeypatch.setattr(Fusion, "load", load)
    monkeypatch.setattr(program, "_ratio", lambda *_: 2.0)
    svi = new_svi("fused")
    until_settled(svi, x)
    assert graph_of(svi).is_fused
    factor[0] = 1.1
    with pytest.warns(UserWarning, match="came to differ from the program's by more than rounding"):
        while graph_of(svi).calls < 64:
            svi.step(x)
    assert not graph_of(svi).is_fused


def test_without_a_compiler_the_step_is_replayed_with_one_warning(tmp_path, monkeypatch):
    monkeypatch.setenv(fused.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    x = torch.randn(16, 4)
    svi, replayed = new_svi("fused"), new_svi(True)
    pyro.set_rng_seed(1)
    with pytest.warns(UserWarning, match="the step is replayed and not fused: ") as warned:
        steps = until_settled(svi, x)
    assert len(warned) == 1
    pyro.set_rng_seed(1)
    for _ in range(steps):
        replayed.step(x)
    assert all(torch.equal(a, b) for a, b in zip(svi.parameters(), replayed.parameters(), strict=True))


def test_without_a_folder_for_the_cache_the_step_is_replayed(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(fused.FOLDER, str(tmp_path / "file" / "cache"))
    svi = new_svi("fused")
    with pytest.warns(UserWarning, match=r"not fused: the folder .* cannot be created \(Not a directory\)"):
        until_settled(svi, torch.randn(16, 4))


def test_the_process_ends_with_its_owner(tmp_path, monkeypatch):
    monkeypatch.setenv(fused.FOLDER, str(tmp_path))
    fusion = Fusion(make_fx(lambda a: [a + 1])(torch.ones(3)), [torch.ones(3)])
    fusion.begin()
    process, folder = fusion._process, fusion._log.parent
    assert process.poll() is None and folder.exists()
    del fusion
    gc.collect()
    assert process.poll() is not None and not folder.exists()


def test_graphs_are_written_and_read_without_being_run():
    """Each operation with its arguments, also random ones without a tensor among them."""

    def program(x):
        noise = torch.randn(3, generator=None) + torch.rand(3)
        return [x.to(torch.float64).sum(-1), torch.where(x > 0, x, -x), noise, x.split(1)[0], None]

    module = make_fx(program)(torch.randn(3))
    state = torch.get_rng_state()
    again = fused._read(fused._written(module))
    assert torch.equal(torch.get_rng_state(), state)
    assert again.code == module.code
    x, results = torch.randn(3), []
    for graph in (module, again):
        torch.manual_seed(1)
        results.append(graph(x))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_constants_become_inputs(monkeypatch):
    """The whole step of AIR, whose graph has constants."""
    modules = []
    monkeypatch.setattr(Fusion, "begin", lambda self: modules.append((self._module, self._constants)))
    monkeypatch.setattr(Fusion, "is_ready", lambda self: False)
    sizes = {"canvas": (1, 20, 20), "num_steps": 2, "what_dim": 3, "window": 8}
    model, guide = AIR(**sizes), AIRGuide(**sizes, embed_dim=8, hidden_dim=8, predict_dim=8)
    svi = SVI(model, guide, adam(model, guide, 1e-3), compile=True)
    x = torch.rand(4, 1, 20, 20)
    svi.step(x)
    graph = graph_of(svi)
    graph.calls = program.FREQUENT
    svi.fuse(float("inf"))
    svi.step(x)
    ((module, constants),) = modules
    assert constants and not [node for node in module.graph.nodes if node.op == "get_attr"]
    call = svi._run._last
    inputs = graph.chosen(call.state.tensors, call.arguments.tensors)
    results = []
    with torch.no_grad():
        for run, tensors in ((graph.module, inputs), (module, [*inputs, *constants])):
            torch.manual_seed(1)
            results.append(run(*(tensor.clone() for tensor in tensors)))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((torch.ones(3), torch.ones(3, device="meta")), "only graphs of CPU tensors"),
        ((torch.ones(6)[:3], torch.ones(6)[3:]), None),
        (torch.ones(6).chunk(2), "two tensors of the step share memory"),
    ],
)
def test_what_cannot_be_fused_is_refused(inputs, reason):
    module = make_fx(lambda a, b: [a + b])(torch.ones(3), torch.ones(3))
    if reason is None:
        Fusion(module, inputs)
        return
    with pytest.raises(FusionError, match=reason):
        Fusion(module, inputs)


def test_only_long_trainings_are_fused(monkeypatch):
    """The loop tells how long the training will still take, and a graph is compiled if that is long enough."""
    begun = []
    monkeypatch.setattr(Fusion, "begin", lambda self: begun.append(self.expected_seconds))
    monkeypatch.setattr(Fusion, "is_ready", lambda self: False)
    x = torch.randn(16, 4)
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    for remaining in (10, 100_000):
        svi = new_svi("auto")
        watching = loop._Fusing(svi)
        for taken in range(1, 2 * loop.CHECK_EVERY + 2):
            svi.step(x)
            now[0] += 0.1
            watching.after_step(remaining + 2 * loop.CHECK_EVERY - taken)
        assert bool(begun) == (remaining > 10)
