"""Images, and scenes made of them, as 8-bit tensors that live on the training device."""

from pplmodels.data.images import Images, ImageSet
from pplmodels.data.own_scenes import load_scenes
from pplmodels.data.reading import as_they_are, bernoulli, dequantised, intensities, thresholded
from pplmodels.data.scenes import SceneSet, make_scenes, scene_set
from pplmodels.data.sources import load_images
from pplmodels.data.tables import Tables, make_tables

__all__ = [
    "ImageSet",
    "Images",
    "SceneSet",
    "Tables",
    "as_they_are",
    "bernoulli",
    "dequantised",
    "intensities",
    "load_images",
    "load_scenes",
    "make_scenes",
    "make_tables",
    "scene_set",
    "thresholded",
]
