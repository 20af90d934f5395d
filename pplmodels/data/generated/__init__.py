"""Generated scenes of several objects on various backgrounds, with true counts and bounding boxes."""

from pplmodels.data.generated.scenes import PRESETS, CoinScenes, DrawnScenes, generate_scenes, scene_arrays

__all__ = ["PRESETS", "CoinScenes", "DrawnScenes", "generate_scenes", "scene_arrays"]
