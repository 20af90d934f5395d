"""The loop: every image once an epoch, and runs that go on where they were."""

import json
import os
import random
import signal
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pplmodels.data import Images
from pplmodels.errors import InputError, NonFiniteLossError
from pplmodels.infer import SVI, Annealed, adam, linear
from pplmodels.states import mapped, packed
from pplmodels.training import Run, fit
from pplmodels.training.loop import _orders

IMAGES = Images(torch.arange(22, dtype=torch.uint8).view(22, 1, 1, 1) * 10)


class Model(PyroModule):
    """z ~ N(0, temperature), x ~ N(w z, 1), and dropout noise from torch's generator."""

    def __init__(self):
        super().__init__("loop_model")
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), self.temperature))
            pyro.sample("x", dist.Normal(self.weight * z, 1.0), obs=x.flatten())


class Guide(PyroModule):
    def __init__(self):
        super().__init__("loop_guide")
        self.net = torch.nn.Linear(1, 2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.net(x.flatten(1) + 0.1 * random.random() + 0.1 * np.random.rand()).unbind(-1)  # noqa: NPY002
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def train(folder, steps, resume=False, schedule=None, evaluate=None, seed=5, decay=None, patience=None):
    pyro.set_rng_seed(seed)
    model, guide = Model(), Guide()
    averaged = decay and AveragedModel(torch.nn.ModuleList([model, guide]), multi_avg_fn=get_ema_multi_avg_fn(decay))
    svi = SVI(model, guide, adam(model, guide, 1e-2))
    run = Run.open(folder) if resume else Run.create(folder, {"seed": seed})
    annealed = [
        Annealed(model.temperature, schedule or linear(2.0, 1.0, 3, 17)),
        Annealed(svi.optim.param_groups[0]["lr"], linear(1e-2, 1e-3, 0, 23)),
    ]
    fit(
        svi,
        IMAGES,
        run,
        steps=steps,
        batch_size=8,
        seed=seed,
        annealed=annealed,
        evaluate=evaluate or (lambda: {"elbo": -float(svi.evaluate_loss(IMAGES[:]))}),
        eval_every=5,
        resume=resume,
        averaged=averaged,
        patience=patience,
    )
    run.close()
    if averaged:
        model, guide = averaged.module
    return model, guide, svi.optim, [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics]


def shuffled(start=0):
    return IMAGES.batched(_orders(len(IMAGES), 8, seed=1, start=start, device=torch.device("cpu")))


def test_an_epoch_shows_every_image_once_and_the_last_batch_is_smaller():
    batches = shuffled()
    epochs = [[next(batches) for _ in range(3)] for _ in range(2)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [8, 8, 6]
        assert torch.cat(epoch).sort(0).values.equal(IMAGES[:])
    assert not torch.cat(epochs[0]).equal(torch.cat(epochs[1]))


def test_the_order_of_batches_depends_on_seed_and_step_only():
    straight = shuffled()
    expected = [next(straight) for _ in range(8)]
    for start in range(8):
        assert next(shuffled(start)).equal(expected[start])


def test_resumed_is_the_same_as_never_stopped(tmp_path):
    """17 + 6 steps equal 23, bit for bit: weights, moments of Adam, schedules, every evaluation."""
    straight = train(tmp_path / "straight", 23)

    class Killed(BaseException):
        pass

    calls = []

    def killed_in_the_fourth_evaluation():
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return {"elbo": 0.0}

    with pytest.raises(Killed):
        train(tmp_path / "stopped", 23, evaluate=killed_in_the_fourth_evaluation)
    assert len((tmp_path / "stopped/metrics.jsonl").read_text().splitlines()) == 3
    resumed = train(tmp_path / "stopped", 23, resume=True)
    for straight_module, resumed_module in zip(straight[:2], resumed[:2], strict=True):
        for name, value in straight_module.state_dict().items():
            assert torch.equal(value, resumed_module.state_dict()[name]), name
    for a, b in zip(straight[2].state_dict()["state"].values(), resumed[2].state_dict()["state"].values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert straight[3][-2:] == resumed[3][-2:]
    assert [line["step"] for line in resumed[3]] == [5, 10, 15, 20, 23]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's file names are any bytes")
def test_a_run_whose_name_is_no_utf8_is_resumed(tmp_path):
    run = tmp_path / "run \udcff"
    train(run, 5)
    assert [line["step"] for line in train(run, 10, resume=True)[3]] == [5, 10]


def test_averaged_weights_follow_the_weights_and_survive_a_kill(tmp_path):
    """By hand: a <- 0.8 a + 0.2 w after each step, beginning with the first step's weights; and over a resumption."""
    straight = train(tmp_path / "straight", 12, decay=0.8)[0].weight
    plain = [train(tmp_path / f"plain{n}", n)[0].weight for n in range(1, 13)]
    expected = plain[0]
    for weight in plain[1:]:
        expected = 0.8 * expected + 0.2 * weight
    torch.testing.assert_close(straight, expected)
    train(tmp_path / "stopped", 5, decay=0.8)
    resumed = train(tmp_path / "stopped", 12, decay=0.8, resume=True)[0].weight
    assert torch.equal(straight, resumed)


def test_training_ends_when_the_bound_no_longer_rises_and_the_best_weights_come_back(tmp_path):
    """The bound is best at step 10; two evaluations later, at step 20 of 40, training ends."""
    bounds = iter([0.0, 3.0, 1.0, 2.0, 9.0])
    model, _, _, lines = train(tmp_path / "run", 40, evaluate=lambda: {"valid_elbo": next(bounds)}, patience=2)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert torch.equal(model.weight, train(tmp_path / "ten", 10)[0].weight)


def test_evaluations_after_the_checkpoint_are_not_kept_twice(tmp_path):
    """Killed between an evaluation's line and its checkpoint, the line comes again; a torn last line is dropped."""
    train(tmp_path / "run", 10)
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 15, "seconds": 1.0, "elbo": 99.0}) + "\n" + '{"step": 20, "sec')
    lines = train(tmp_path / "run", 15, resume=True)[3]
    assert [line["step"] for line in lines] == [5, 10, 15]
    assert lines[-1]["elbo"] != 99.0


def test_evaluation_does_not_disturb_training(tmp_path):
    quiet = train(tmp_path / "quiet", 12, evaluate=lambda: {"elbo": 0.0})
    noisy = train(tmp_path / "noisy", 12, evaluate=lambda: {"elbo": float(torch.randn(1000).sum())})
    assert torch.equal(quiet[0].weight, noisy[0].weight)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_site_named(tmp_path):
    """The prior's scale becomes 0 at step 12: log p(z) is infinite; the checkpoint of step 10 stays."""
    with pytest.raises(NonFiniteLossError, match="z in the model"):
        train(tmp_path / "run", 20, schedule=lambda step: 0.0 if step >= 12 else 1.0)
    state = mapped(tmp_path / "run/checkpoint.safetensors")
    assert state["step"] == 10
    guide = [value for name, value in state.items() if name.startswith("guide/")]
    assert len(guide) == 2 and all(value.isfinite().all() for value in guide)


def test_annealed_tensors_get_the_values_of_their_steps(tmp_path):
    seen = []
    train(tmp_path / "run", 10, schedule=lambda step: seen.append(step) or 1.0)
    assert seen == list(range(10))


@pytest.mark.parametrize("damage", ["missing", "earlier", "cut", "other pair", "other size", "text"])
def test_checkpoints_that_cannot_be_used_are_refused(tmp_path, damage):
    train(tmp_path / "run", 5)
    path = tmp_path / "run/checkpoint.safetensors"
    state = mapped(path)
    if damage == "missing":
        path.unlink()
    elif damage == "earlier":
        path.rename(tmp_path / "run/checkpoint.pt")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("no checkpoint")
    elif damage == "other pair":
        path.write_bytes(packed({**state, "model_class": "DRAW"}))
    elif damage == "other size":
        path.write_bytes(packed({**state, "guide/net.weight": torch.zeros(3, 3)}))
    with pytest.raises(InputError, match="earlier version" if damage == "earlier" else "checkpoint"):
        train(tmp_path / "run", 10, resume=True)


def test_the_state_of_an_earlier_version_is_not_begun_anew(tmp_path):
    """Also before there were evaluations, where a run without a checkpoint begins."""
    Run.create(tmp_path / "run", {"seed": 5}).close()
    (tmp_path / "run/checkpoint.pt").write_text("pickled")
    with pytest.raises(InputError, match=f"--init-from {tmp_path}/run"):
        train(tmp_path / "run", 10, resume=True)
    with pytest.raises(InputError, match="already contains a run"):
        train(tmp_path / "run", 10)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"config.json", "checkpoint.pt", ".lock"}


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not empty"):
        Run.create(tmp_path, {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    train(tmp_path / "run", 5)
    before = (tmp_path / "run/config.json").read_bytes()
    with pytest.raises(InputError, match="already contains a run"):
        Run.create(tmp_path / "run", {"seed": 1})
    assert (tmp_path / "run/config.json").read_bytes() == before


def failed_start(folder):
    """What a training leaves that fails in its first step, and one that goes on from there."""
    for resume in (False, True):
        with pytest.raises(ZeroDivisionError):
            train(folder, 5, schedule=lambda step: 1 / 0, resume=resume)


def test_a_folder_in_which_nothing_was_trained_is_free(tmp_path):
    run = tmp_path / "run"
    failed_start(run)
    for part in ("alone", "starts/0"):
        failed_start(run / part)
    (run / "tensorboard").mkdir()
    (run / ".writing-7-checkpoint.safetensors").write_text("half a checkpoint")
    assert {"config.json", "checkpoint.safetensors", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    again, fresh = train(run, 5, seed=6), train(tmp_path / "fresh", 5, seed=6)
    assert torch.equal(again[0].weight, fresh[0].weight) and again[3] == fresh[3]
    assert {path.name for path in run.iterdir()} == {path.name for path in (tmp_path / "fresh").iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        "notes",
        "config.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "tensorboard/events",
        "starts/notes",
        "mine/config.json",
    ],
)
def test_a_folder_with_anything_else_in_it_is_not(tmp_path, name):
    failed_start(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already contains a run"):
        train(tmp_path, 5)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_a_run_that_was_stopped_before_its_first_evaluation_is_not(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 9, schedule=lambda step: 1.0 if step < 3 else os.kill(os.getpid(), signal.SIGINT) or 1.0)
    with pytest.raises(InputError, match="already contains a run"):
        train(tmp_path, 5)
