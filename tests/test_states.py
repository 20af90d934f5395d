"""Nested states as named leaves, and these in one file."""

import random

import numpy as np
import pytest
import torch

from pplmodels.module import PairModule
from pplmodels.rng import get_rng_state, set_rng_state
from pplmodels.states import filled, mapped, named, packed, unpacked

MATRIX = torch.arange(6.0).view(2, 3)
STATE = {"a": {0: [1, (2.5, None)], "b/c": MATRIX}, "x": "\udcff", "empty": {}, "flag": True}


def written(tmp_path, leaves):
    (tmp_path / "file").write_bytes(packed(leaves))
    return mapped(tmp_path / "file")


def test_leaves_are_named_by_their_paths():
    names = ["a/0/0", "a/0/1/0", "a/0/1/1", "a/b/c", "x", "flag"]
    assert list(named(STATE)) == names and named(7) == {"": 7}
    assert named(STATE)["a/0/1/1"] is None and named(STATE)["a/b/c"] is MATRIX


@pytest.mark.parametrize("read", ["file", "bytes"])
def test_a_state_is_nested_again_as_the_one_to_compare_with(tmp_path, read):
    leaves = named(STATE)
    found = unpacked(packed(leaves)) if read == "bytes" else written(tmp_path, leaves)
    assert found.keys() == leaves.keys()
    like = {"a": {0: [0, (0.0, None)], "b/c": torch.zeros(2, 3)}, "x": "", "empty": {}, "flag": False}
    again = filled(like, found)
    assert torch.equal(again["a"].pop("b/c"), MATRIX)
    assert again == {"a": {0: [1, (2.5, None)]}, "x": "\udcff", "empty": {}, "flag": True}
    assert like["a"]["b/c"].eq(0).all() and like["x"] == ""


def test_tensors_that_share_memory_or_lie_in_another_order_are_written_as_if_alone(tmp_path):
    maps = torch.randn(2, 3, 4, 5)
    channels_last = maps.contiguous(memory_format=torch.channels_last)
    tensors = {"one": MATRIX, "again": MATRIX, "turned": MATRIX.t(), "part": MATRIX[:, 1:], "row": MATRIX[1]}
    tensors |= {"wide": torch.ones(()).expand(3, 2), "maps": channels_last, "none": torch.empty(0, 3)}
    tensors |= {"half": MATRIX.bfloat16(), "truth": MATRIX > 2, "parameter": torch.nn.Parameter(MATRIX)}
    found = written(tmp_path, tensors)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())
    again = filled({"maps": torch.empty_like(channels_last)}, found)["maps"]
    assert torch.equal(again, maps) and again.stride() == channels_last.stride()


def test_the_versions_of_a_module_s_parts_stay(tmp_path):
    own = torch.nn.BatchNorm1d(2).state_dict()
    assert filled(own, written(tmp_path, named(own)))._metadata == own._metadata


def test_generators_go_on_from_a_file(tmp_path):
    """Python's and NumPy's with a spare normal number, and without one."""

    def draw():
        return [random.gauss(0, 1), random.random(), np.random.randn(), float(torch.randn(()))]  # noqa: NPY002

    for _ in range(2):
        own = get_rng_state()
        found = filled(own, written(tmp_path, named(own)))
        expected = draw(), draw()
        set_rng_state(found)
        assert (draw(), draw()) == expected
        draw()


class Tied(PairModule):
    """A module with one parameter under two names, and a buffer that is a part of another."""

    role = "model"

    def __init__(self, size=3):
        super().__init__("tied")
        self.first = torch.nn.Linear(size, size)
        self.second = torch.nn.Linear(size, size)
        self.second.weight = self.first.weight
        self.register_buffer("both", torch.randn(size, size).t())
        self.register_buffer("row", self.both[0])


def test_a_module_whose_parts_share_parameters_can_be_saved(tmp_path):
    module = Tied(4)
    module.save_pretrained(tmp_path)
    again = Tied.from_pretrained(tmp_path)
    assert again.second.weight is again.first.weight
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
