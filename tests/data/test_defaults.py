"""Data are the same whatever default type and device a program has set."""

import pytest
import torch

from pplmodels.data import dynamic_binarize, load_images, make_scenes, make_tabletop_scenes, scene_set
from pplmodels.data.gaussians import GAUSSIANS


def made():
    digits = load_images("digits").with_validation()
    scenes = scene_set("digits", num_train=6, num_test=5)
    return {
        "images": digits.train.pixels,
        "validation": digits.valid.pixels,
        "frozen": digits.test.with_transform(dynamic_binarize).frozen(1).pixels,
        "resized": load_images("digits", image_size=12).test.pixels,
        "scenes": make_scenes(digits.train, 20, canvas=40, object_size=13.0).pixels,
        "scene set": scenes.train.pixels,
        "window prior": torch.tensor(scenes.window_prior(), dtype=torch.float64, device="cpu"),
        "tables": make_tabletop_scenes(3).pixels,
        "points": GAUSSIANS["rotated"].draw(5, seed=2),
    }


@pytest.mark.parametrize("changed", ["float64", "another device"])
def test_data_do_not_depend_on_defaults(changed):
    """The other device has tensors without content, so that whatever reads one of them fails."""
    expected = made()
    try:
        if changed == "float64":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        found = made()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for name, tensor in expected.items():
        assert found[name].device.type == "cpu" and found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_readings_give_the_default_type(float64):
    images = load_images("digits").train.head(3)
    assert images[:].dtype == images.with_transform(dynamic_binarize)[:].dtype == torch.float64
