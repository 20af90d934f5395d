"""Two processes that train one pair together are as good as one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from estimates import CASES, estimates
from safetensors.torch import load_file

from pplmodels import distributed
from pplmodels.errors import InputError

pytestmark = pytest.mark.xdist_group("ranks")  # one process makes what they share
ROOT = Path(__file__).parents[2]
HANGS = 900  # seconds after which processes are taken to hang
SMALL = [
    *("--canvas", "20", "--object-size", "8", "--train-scenes", "333", "--test-scenes", "31", "--window", "8"),
    *("--what-dim", "4", "--batch-size", "16", "--device", "cpu"),
]


def torchrun(number, program, *arguments, restarts=0, options=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    command += ["--max-restarts", str(restarts)]
    command += [*map(str, options), str(ROOT / program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(process):
    output, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 0, errors
    return output, errors


def weights(run):
    return [load_file(run / f"{role}.safetensors") for role in ("model", "guide")]


def same(first, second):
    return all(a[name].equal(b[name]) for a, b in zip(first, second, strict=True) for name in a | b)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimates")
    finished(torchrun(2, "tests/ranks/estimates.py", folder))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_half_of_the_images_each_estimate_what_one_does_with_all(of_two, case, float64):
    expected = estimates(case)
    first, second = (load_file(of_two / f"{case}.{rank}") for rank in range(2))
    for name, value in expected.items():
        assert first[name].equal(second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-10 * float(value.abs().max()))
    assert not any(value.any() for name, value in first.items() if name not in expected)  # None on one rank


def test_shares_are_everything_once():
    assert [distributed.shard(7), distributed.world_size(), distributed.rank(), distributed.all_gather_object("x")] == [
        slice(0, 7),
        1,
        0,
        ["x"],
    ]


@pytest.mark.parametrize("early", [0, 1])
def test_ranks_that_start_again_do_not_see_what_those_before_them_left_in_the_store(early):
    """The early one starts while the store only knows of ranks that are gone."""
    store = dist.HashStore()
    for start in range(2):
        with ThreadPoolExecutor() as pool:
            first = pool.submit(distributed._fresh_store, store, early, 2)
            time.sleep(0.1)
            assert not first.done()
            parts = [distributed._fresh_store(store, 1 - early, 2), first.result()]
        assert not parts[0].check(["address"])
        parts[0].set("address", f"of start {start}")
        assert parts[1].get("address").decode() == f"of start {start}"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A training of 24 steps on two ranks."""
    run = tmp_path_factory.mktemp("straight") / "run"
    output, errors = finished(
        torchrun(2, "scripts/train_air.py", *SMALL, "--steps", 24, "--eval-every", 12, "--out", run)
    )
    return run, output, errors


def test_rank_0_writes_and_speaks_for_all(straight):
    run, output, errors = straight
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [12, 24]
    assert output.count("metrics on 31 held-out images") == output.count("all results are in") == 1
    assert errors.count("step     24") == 1 and "uncompiled" not in errors
    result = json.loads((run / "result.json").read_text())
    assert result["device"].endswith(", 2 ranks")
    confusion = result["metrics"]["confusion"]
    assert sum(map(sum, confusion)) == 31  # no scene is measured twice or left out
    right = [sum(row) * result["metrics"][f"all_parts_right/{n}"] for n, row in enumerate(confusion)]
    assert sum(right) == pytest.approx(31 * result["metrics"]["all_parts_right"])
    assert sum(result["metrics"]["reliability/share"]) == pytest.approx(1)


@pytest.mark.slow
def test_a_compiled_step_is_the_step_itself(straight, tmp_path):
    options = [*SMALL, "--steps", 24, "--eval-every", 12, "--no-compile", "--out", tmp_path / "run"]
    finished(torchrun(2, "scripts/train_air.py", *options))
    assert same(weights(straight[0]), weights(tmp_path / "run"))


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_a_restarted_run_goes_on_where_it_was(straight, tmp_path):
    run = tmp_path / "run"
    options = [*SMALL, "--steps", 24, "--eval-every", 12, "--out", run]
    # With a long interval between its checks, torchrun does not end rank 0 before rank 0 has detected the failure.
    rarely = ("--monitor-interval", 20)
    process = torchrun(2, "scripts/train_air.py", *options, restarts=1, options=rarely)
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    killed = time.monotonic()
    while Path(f"/proc/{children[0]}").exists():
        assert time.monotonic() - killed < HANGS
        time.sleep(0.05)
    assert not (run / "result.json").exists()
    _, errors = finished(process)
    assert "rank 0 stopped: another rank has exited" in errors
    assert same(weights(straight[0]), weights(run))


@pytest.mark.filterwarnings("default")
def test_a_run_goes_on_with_another_number_of_ranks(straight, tmp_path, script):
    run = tmp_path / "run"
    shutil.copytree(straight[0], run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "steps": 36}))
    (run / "result.json").unlink()
    script("train_air")(["--resume", "--out", str(run)])
    first, *_, last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert last["step"] == 36
    assert last["train_elbo"] > first["train_elbo"]


@pytest.mark.slow
def test_rank_0_draws_alone_while_the_other_goes_on(tmp_path):
    """What a VAE's pictures show is measured by functions that ask all ranks where all of them call."""
    sizes = ["--hidden", 8, "--z-dim", 2, "--batch-size", 16, "--no-compile", "--steps", 4, "--eval-every", 2]
    finished(torchrun(2, "scripts/train_vae.py", *sizes, "--out", tmp_path / "run"))
    assert (tmp_path / "run" / "manifold.png").exists() and (tmp_path / "run" / "result.json").exists()


@pytest.mark.filterwarnings("default")
def test_batches_without_equal_shares_are_refused(tmp_path, script, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match="batches of 15 images cannot be divided equally between 2 ranks"):
        script("train_air")([*SMALL, "--batch-size", "15", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
