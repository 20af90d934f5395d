"""What the types of systems cannot say, and is checked when a training begins."""

import pytest
import torch

from guides.systems.air import SYSTEM as AIR
from guides.systems.air import AIROptions
from pplmodels import AIR as AIRModel
from pplmodels.data import Images, SceneSet
from pplmodels.infer import ScaledKL
from pplmodels.systems.system import unwrapped


def test_options_that_depend_on_the_scenes_have_to_be_resolved():
    scenes = Images(torch.zeros(2, 1, 12, 12, dtype=torch.uint8), torch.tensor([0, 2]))
    data = SceneSet(scenes, scenes, object_side=5.0)
    options = AIROptions(window=8)
    with pytest.raises(ValueError, match="options that depend on the scenes are missing"):
        AIR.build(options, data, *AIR.classes(options))
    model, guide = AIR.build(AIR.resolve(options, data), data, *AIR.classes(options))
    assert model.num_steps == guide.num_steps == 3


def test_a_scaled_kl_is_unwrapped_and_other_wrappers_are_refused():
    model = AIRModel(canvas=(1, 12, 12), window=8)
    assert unwrapped(model) is unwrapped(ScaledKL(model)) is model
    with pytest.raises(TypeError, match="Sequential"):
        unwrapped(torch.nn.Sequential(model))
