"""Files of strangers: nothing in them runs, nothing outside is written, sizes are known before memory is taken."""

import contextlib
import json
import math
import os
import pickle
import struct
import subprocess
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.data import load_images, load_scenes
from pplmodels.data.levels import Decoding
from pplmodels.data.pictures import read_picture
from pplmodels.errors import LONGEST, InputError
from pplmodels.infer import SVI, adam
from pplmodels.io import atomic_write
from pplmodels.module import PairModule
from pplmodels.registry import load_pair
from pplmodels.states import mapped, packed
from pplmodels.training import Run, best_of_seeds
from pplmodels.training.checkpoint import load_checkpoint, save_checkpoint, step_of
from pplmodels.training.state import TrainState

SIZES = {"image": (1, 4, 4), "z_dim": 2, "hidden_dims": (3,)}
SUM = torch.tensor(2.5, dtype=torch.float64)
GOOD = np.zeros((4, 6, 6), np.uint8)


class Marker:
    """Pickled, it is a program that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pair_in(folder):
    for module in (MLPVAE(**SIZES), MLPGuide(**SIZES)):
        module.save_pretrained(folder)


def training(step=0, seconds=0.0):
    model, guide = MLPVAE(**SIZES), MLPGuide(**SIZES)
    return TrainState(SVI(model, guide, adam(model, guide, lr=1e-3)), step=step, seconds=seconds)


def taken_a_step(step, seconds=0.0):
    """A training whose optimizer has a state, and with a sum of losses that is known."""
    state = training(step - 1, seconds)
    state.take_step(torch.rand(3, 1, 4, 4).round())
    state.summed_losses.copy_(SUM)
    return state


def loaded(folder):
    state = training()
    load_checkpoint(folder, state)
    return state


def refused(load, *arguments, match=None):
    with pytest.raises(InputError, match=match) as caught:
        load(*arguments)
    assert str(caught.value).isprintable()


def test_a_sentence_is_one_short_line_whatever_it_quotes():
    assert str(InputError("a\nb\x1b[31m")) == "a b [31m"
    assert str(InputError("a\udcff")) == "a\\udcff"
    assert len(str(InputError("x" * 10**6))) == LONGEST


def test_no_pickle_runs(tmp_path):
    mark = tmp_path / "mark"
    np.savez(tmp_path / "a.npz", x_train=np.array([Marker(mark)], object), x_test=GOOD)
    refused(load_images, str(tmp_path / "a.npz"), match="plain arrays")
    pair_in(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Marker(mark)))
    refused(load_pair, tmp_path, match="does not contain the weights")
    torch.save({"model": Marker(mark)}, tmp_path / "checkpoint.safetensors")
    refused(load_checkpoint, tmp_path, training(), match="is not a checkpoint")
    (tmp_path / "checkpoint.safetensors").rename(tmp_path / "checkpoint.pt")
    refused(load_checkpoint, tmp_path, training(), match="earlier version")
    assert not mark.exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)["model"].close()
    assert mark.exists()  # it would have


def npz(path, header=None, content=bytes(36), method=zipfile.ZIP_STORED, name="x_train.npy"):
    """An archive with good arrays, of which ``name`` is as the arguments say."""
    header = header or "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 6, 6), }"
    np.savez(path, x_test=GOOD, **({} if name == "x_train.npy" else {"x_train": GOOD}))
    with zipfile.ZipFile(path, "a") as archive:
        head = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode()
        archive.writestr(name, head + content, method)
    return str(path)


def test_the_made_up_archive_is_good_when_it_tells_the_truth(tmp_path):
    assert len(load_images(npz(tmp_path / "a.npz")).train) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"header": "{'descr': '|u1', 'fortran_order': False, 'shape': (300000000, 1, 1), }"},
        {"header": "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 6, 6), }"},
        {"header": "{'descr': '|V0', 'fortran_order': False, 'shape': (300000000, 6, 6), }", "content": b""},
        {"header": "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "-" * 3000 + "1,), }"},
        {
            "header": "{'descr': '|u1', 'fortran_order': False, 'shape': (8388608, 1, 1), }",
            "content": bytes(2**23),
            "method": zipfile.ZIP_DEFLATED,
        },
        {"method": zipfile.ZIP_LZMA},
        {"content": bytes(35)},
    ],
    ids=["shape", "negative", "no bytes", "nested", "bomb", "lzma", "short"],
)
def test_an_array_has_the_bytes_that_it_claims_or_is_refused_first(tmp_path, options, monkeypatch):
    monkeypatch.setattr("pplmodels.data.arrays.SMALL", 2**20)
    path = npz(tmp_path / "a.npz", **options)
    tracemalloc.start()
    refused(load_images, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("field, value", [("flag", 1), (24, 2**31), (20, 2**31), (20, 2**32 - 2)])
def test_an_entry_whose_directory_lies_is_refused(tmp_path, save, field, value):
    path = tmp_path / "a.npz"
    save(path, x_train=GOOD, x_test=GOOD)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2")
    if field == "flag":  # encrypted
        content[place + 8] |= value
    else:
        content[place + field : place + field + 4] = struct.pack("<I", value)  # 20: as it is stored, 24: unpacked
    path.write_bytes(content)
    tracemalloc.start()
    refused(load_images, str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_names_in_an_archive_are_no_paths(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("../x_train.npy", str(tmp_path / "x_train.npy"), "x_train"):
        path = tmp_path / "in" / "a.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"content")
            archive.writestr("x_test.npy", b"content")
        refused(load_images, str(path))
    assert [*tmp_path.rglob("*")] == [tmp_path / "in", tmp_path / "in" / "a.npz"]


def test_a_count_is_no_more_than_the_pixels(tmp_path):
    path = tmp_path / "a.npz"
    for most in (36, 37, 2**62):
        np.savez(path, x_train=GOOD, x_test=GOOD, n_train=np.array([0, 1, 2, most]))
        if most == 36:
            assert load_scenes(path)[0].counts.max() == 36
        else:
            refused(load_scenes, path, match="36 pixels")


def png(path, width, height):
    """A PNG whose header claims a size that its content has not."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def folder_of_images(folder):
    folder.mkdir(exist_ok=True)
    for number in range(10):
        Image.new("L", (6, 6)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("side", [4097, 9600, 20_000, 2**30])  # below, in and above what Pillow warns of
def test_an_image_that_claims_too_many_pixels_is_refused(tmp_path, side):
    png(folder_of_images(tmp_path) / "3.png", side, side)
    refused(load_images, str(tmp_path), match="16,777,216" if side < 13_000 else "not a readable image")


def test_a_part_of_an_image_that_claims_more_bytes_than_there_are_takes_none(tmp_path):
    path = folder_of_images(tmp_path) / "3.png"
    content = path.read_bytes()
    place = content.index(b"IDAT") - 4
    path.write_bytes(content[:place] + struct.pack(">I", 2**31 - 1) + content[place + 4 :])
    tracemalloc.start()
    with contextlib.suppress(InputError):  # some versions of Pillow pass over it
        load_images(str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_an_image_file_of_more_bytes_than_its_pixels_can_have_is_not_read(tmp_path):
    with open(folder_of_images(tmp_path) / "3.png", "ab") as file:
        file.truncate(2**40)  # a hole: the disk holds none of it
    refused(load_images, str(tmp_path), match="more bytes than an image")


def test_an_image_of_the_largest_size_loads(tmp_path):
    Image.new("L", (4096, 4096)).save(tmp_path / "0.png")
    assert read_picture(tmp_path / "0.png", Decoding()).shape == (4096, 4096)


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\n%%EOF\n"
    (folder_of_images(tmp_path) / "3.png").write_bytes(script)
    refused(load_images, str(tmp_path), match=r"3\.png is not a readable image")


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "model.json", "model.safetensors", "checkpoint.safetensors"]
)
def test_a_named_pipe_is_not_waited_for(tmp_path, name):
    pair_in(tmp_path)
    save_checkpoint(tmp_path, training(step=1))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    loads = {"config.json": Run.open, "checkpoint.safetensors": lambda folder: load_checkpoint(folder, training())}
    refused(loads.get(name, lambda folder: (load_pair(folder), Run.open(folder).metrics)), tmp_path)


def described(folder, **arguments):
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**content, "arguments": content["arguments"] | arguments}))


@pytest.mark.parametrize(
    "arguments",
    [{"z_dim": 10**7}, {"hidden_dims": [10**5, 10**5]}, {"hidden_dims": [1] * 10**5}, {"image": [10**4, 10**4, 10**4]}],
    ids=["code", "hidden", "layers", "image"],
)
def test_a_description_that_asks_for_more_than_its_weights_allocates_nothing(tmp_path, monkeypatch, arguments):
    pair_in(tmp_path)
    described(tmp_path, **arguments)
    built = []
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda self: built.append(self.weight.is_meta))
    refused(load_pair, tmp_path)
    assert all(built) and len(built) < 100


def test_layers_without_end_are_stopped(tmp_path):
    class Tower(PairModule):
        role = "model"

        def __init__(self, layers=1):
            super().__init__("tower")
            self.layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(layers))

    Tower().save_pretrained(tmp_path)
    assert isinstance(Tower.from_pretrained(tmp_path), Tower)
    described(tmp_path, layers=10**12)
    refused(Tower.from_pretrained, tmp_path, match="more layers than the weights file")


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"class": [], "arguments": {}}',
        b'{"class": "MLPVAE\\n\\u001b", "arguments": []}',
        b'{"class": "MLPVAE\\n\\u001b", "arguments": {}}',
        b'{"class": "MLPVAE", "arguments": {"z_dim": NaN}}',
        b'{"class": "MLPVAE", "arguments": {"z_dim": 1e999}}',
        b'{"class": "MLPVAE", "arguments": {"self": 1, "cls": 2}}',
        b'{"class": "MLPVAE", "arguments": {"z_dim": 1' + b"0" * 5000 + b"}}",
        b'{"class": "MLPVAE", "arguments": {"z_dim": ' + b"[" * 10**5 + b"}}",
        b"\xff\xfe",
    ],
)
def test_a_description_of_another_form_is_refused(tmp_path, content):
    pair_in(tmp_path)
    (tmp_path / "model.json").write_bytes(content)
    refused(load_pair, tmp_path)


@pytest.mark.parametrize("length", [0, 2**60, 2**64 - 1, 200])
def test_weights_whose_header_lies_are_refused(tmp_path, length):
    pair_in(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(load_pair, tmp_path, match="does not contain the weights")


# what a checkpoint may not hold: leaves by their names, None for one that is left out
LEAVES = {
    "no weight": {"model/decoder.0.0.bias": None},
    "another shape": {"model/decoder.0.0.bias": torch.zeros(10**6)},
    "another dtype": {"model/decoder.0.0.bias": torch.zeros(3, dtype=torch.float64)},
    "a number for a tensor": {"model/decoder.0.0.bias": 1.0},
    "a weight too many": {"model/more": torch.zeros(3)},
    "other moments": {"optim/state/0/exp_avg": torch.zeros(10**6)},
    "no moments": {"optim/state/0/exp_avg": None},
    "moments of no parameter": {"optim/state/8/exp_avg": torch.zeros(3)},
    "rate": {"optim/param_groups/0/lr": "fast"},
    "betas": {"optim/param_groups/0/betas/0": math.nan},
    "no group": {"optim/param_groups/0/params/0": None},
    "two groups": {"optim/param_groups/1/params/0": 0},
    "parameters": {f"optim/param_groups/0/params/{number}": 0 for number in range(8)},
    "numpy's key": {"rng/0/numpy/state/key": torch.zeros(10**6, dtype=torch.int64)},
    "numpy's position": {"rng/0/numpy/state/pos": 10**9},
    "another generator": {"rng/0/numpy/bit_generator": "PCG64"},
    "torch's generator": {"rng/0/torch": torch.full((5056,), 255, dtype=torch.uint8)},
    "no generator": {"rng/0/torch": None},
    "python's position": {"rng/0/python/key": torch.full((625,), 10**9)},
    "losses": {"summed_losses": torch.zeros(10**6, dtype=torch.float64)},
    "step": {"step": -1},
    "half a step": {"step": 1.5},
    "no step": {"step": None},
    "seconds": {"seconds": math.inf},
    "before the start": {"seconds": -1.0},
    "classes": {"model_class": ["MLPVAE"]},
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_checkpoint_holds_what_this_training_saves_or_is_refused(tmp_path, name):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(tmp_path, taken_a_step(7, 1.5))
    again = loaded(tmp_path)
    assert (again.step, again.seconds, again.summed_losses) == (7, 1.5, SUM)
    leaves = mapped(path)
    for leaf, value in LEAVES[name].items():
        leaves[leaf] = value
        if value is None:
            del leaves[leaf]
    path.write_bytes(packed(leaves))
    refused(load_checkpoint, tmp_path, training(), match=r"checkpoint\.safetensors")


def test_what_versions_and_machines_differ_in_is_this_one_s(tmp_path):
    path, state = tmp_path / "checkpoint.safetensors", training(7, 1.5)
    state.summed_losses.copy_(SUM)
    save_checkpoint(tmp_path, state)
    other = {"optim/param_groups/0/later": True, "rng/0/cuda": torch.zeros(99, 16, dtype=torch.uint8)}
    leaves = {name: leaf for name, leaf in mapped(path).items() if not name.endswith("/eps")}
    path.write_bytes(packed({**leaves, **other}))
    again = loaded(tmp_path)
    assert (again.step, again.seconds, again.summed_losses) == (7, 1.5, SUM)
    assert again.svi.optim.param_groups[0].keys() == state.svi.optim.param_groups[0].keys()
    assert again.svi.optim.param_groups[0]["eps"] == 1e-8


def test_a_checkpoint_that_is_cut_short_is_refused(tmp_path):
    save_checkpoint(tmp_path, training(step=1))
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()
    for length in (*range(0, len(content), len(content) // 50), len(content) - 1):
        path.write_bytes(content[:length])
        refused(load_checkpoint, tmp_path, training(), match="is truncated")
        refused(step_of, path, match="is truncated")


@pytest.mark.parametrize("claim", [[0, 2**38], [0, 2**63], [2**38, 2**39], [0, 12], [4, 0], "more bytes"], ids=str)
def test_a_checkpoint_whose_header_lies_is_refused(tmp_path, claim):
    save_checkpoint(tmp_path, training(step=1))
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, name = json.loads(content[8 : 8 + length]), "model/decoder.0.0.bias"
    if claim == "more bytes":  # which are there, in a hole that takes no room on the disk
        end = len(content) - 8 - length
        header["model/more"] = {"dtype": "U8", "shape": [2**40], "data_offsets": [end, end + 2**40]}
    else:
        start, end = claim
        header[name] = {"dtype": "F32", "shape": [abs(end - start) // 4], "data_offsets": claim}
    described = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(described)) + described + content[8 + length :])
    if claim == "more bytes":
        with open(path, "ab") as file:
            file.truncate(path.stat().st_size + 2**40)
    tracemalloc.start()
    refused(load_checkpoint, tmp_path, training(), match=r"checkpoint\.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("plain", ["", "[]", "3", "[" * 10**5, '{"step": 1' + "0" * 5000 + "}", "null", '"x"'])
def test_a_checkpoint_with_other_json_is_refused(tmp_path, plain):
    tensors = {"model/more": torch.zeros(3)}
    (tmp_path / "checkpoint.safetensors").write_bytes(save(tensors, {"plain": plain}))
    refused(load_checkpoint, tmp_path, training(), match="is not a checkpoint")


def test_what_is_loaded_does_not_stay_in_the_file(tmp_path):
    state = taken_a_step(1)
    save_checkpoint(tmp_path, state)
    again = loaded(tmp_path)
    with open(tmp_path / "checkpoint.safetensors", "r+b") as file:  # written over, where a mapping would see it
        file.write(bytes(os.path.getsize(tmp_path / "checkpoint.safetensors")))
    assert again.summed_losses == SUM
    for mine, theirs in zip(state.svi.optim.state.values(), again.svi.optim.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"]) and mine["exp_avg"].any()


def test_a_link_is_replaced_and_never_written_through(tmp_path):
    (tmp_path / "outside").write_text("mine")
    for name in ("file", f".file.{os.getpid()}"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    atomic_write(tmp_path / "file", lambda path: path.write_text("new"))
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "outside").read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "curves.png", "tensorboard", "starts", "starts/3", "tensorboard/x"])
def test_a_run_with_a_link_in_it_is_refused(tmp_path, name):
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    Run.create(run, {"seed": 0})
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(outside)
    refused(Run.open, run, match="is a link")


@pytest.mark.filterwarnings("default")
def test_a_link_made_later_is_not_followed_by_the_log(tmp_path):
    run = Run.create(tmp_path / "run", {"seed": 0})
    (run.folder / "metrics.jsonl").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError):
        run.log(1, 0.0, {"elbo": 1.0})
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("content", ["[]", "3", "", "[" * 10**5, '{"seed": NaN}', "\x00"])
def test_a_configuration_of_another_form_is_no_run(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    refused(Run.open, tmp_path, match="is not a run")


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '"x"',
        '{"step": "3", "seconds": 1}',
        '{"step": 3}',
        '{"step": 3, "seconds": 1, "valid_elbo": "x"}',
        '{"step": 1' + "0" * 400 + ', "seconds": 1}',
        "[" * 10**5,
    ],
)
def test_evaluations_of_another_form_are_refused(tmp_path, line):
    run = Run.create(tmp_path / "run", {"seed": 0})
    good = json.dumps({"step": 1, "seconds": 1.0, "valid_elbo": math.nan})
    (run.folder / "metrics.jsonl").write_text(f"{good}\n{good}\ncut sho")
    assert len(run.metrics) == 2
    (run.folder / "metrics.jsonl").write_text(f"{good}\n{line}\n")
    refused(lambda: run.metrics, match="does not contain valid evaluations")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"kept": "../../x"}', '{"kept": 7}', '{"kept": 1.0}', '{"kept": true}']
)
def test_only_a_seed_that_was_tried_can_have_been_kept(tmp_path, content):
    run = Run.create(tmp_path / "run", {"seed": 0})
    (run.folder / "starts.json").write_text(content)
    refused(best_of_seeds, run, range(2, 4), None, match="does not name one of the seeds 2, 3")
