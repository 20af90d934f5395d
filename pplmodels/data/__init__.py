"""Images, and scenes made of them, as 8-bit tensors that live on the training device."""

from pplmodels.data.images import Images
from pplmodels.data.objects import load_objects
from pplmodels.data.scenes import SceneSet, load_scenes, make_scenes, scene_set

__all__ = ["Images", "SceneSet", "load_objects", "load_scenes", "make_scenes", "scene_set"]
