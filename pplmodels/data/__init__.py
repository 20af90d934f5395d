"""Datasets of images and scenes, stored as 8-bit tensors on the training device."""

from pplmodels.data.datasets import load_images
from pplmodels.data.images import Images, ImageSet, ValidatedImageSet
from pplmodels.data.own_scenes import load_scenes
from pplmodels.data.scenes import SceneSet, make_scenes, scene_set
from pplmodels.data.tabletop import TabletopScenes, TabletopSet, make_tabletop_scenes
from pplmodels.data.transforms import dequantize, dynamic_binarize, identity, threshold, to_float

__all__ = [
    "ImageSet",
    "Images",
    "SceneSet",
    "TabletopScenes",
    "TabletopSet",
    "ValidatedImageSet",
    "identity",
    "dynamic_binarize",
    "dequantize",
    "to_float",
    "load_images",
    "load_scenes",
    "make_scenes",
    "make_tabletop_scenes",
    "scene_set",
    "threshold",
]
