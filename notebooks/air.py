# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # AIR: how many objects, where and which?
#
# A scene has zero, one or two handwritten digits. AIR learns without labels how many there are, where they are and what
# they look like.

# %%
# %matplotlib inline
import tempfile

import torch

from pplmodels import inspect, load_pair, plotting
from pplmodels.data import scene_set

# %% [markdown]
# This is a short training on scenes of the built-in digits. `python scripts/train_air.py` trains longer; you can load
# its run folder under `runs/` instead.

# %%
folder = tempfile.mkdtemp() + "/air"
small = "--num-steps 2 --window 20 --what-dim 20 --train-scenes 20000 --test-scenes 1000 --batch-size 64"
# %run ../scripts/train_air.py --steps 1200 --count-steps 200 1000 --eval-every 1200 {small} --out {folder}

# %%
model, guide = load_pair(folder)
scenes = scene_set("digits", num_train=10, num_test=2000).test
x = scenes.head(10)[:]

# %% [markdown]
# ## Windows and reconstructions
# The windows are numbered in the order of inference. The bottom row shows the reconstructions.

# %%
torch.manual_seed(0)
view = inspect.infer_scenes(model, guide, x)
arrays = (view.scenes, view.reconstruction.clamp(0, 1), view.z_pres, view.z_where, scenes.counts[:10])
plotting.scenes_with_windows(*(array.numpy() for array in arrays))

# %% [markdown]
# ## The posterior with named dimensions

# %%
posterior = inspect.posterior(model, guide, x, num_samples=200)
posterior.posterior

# %% [markdown]
# The next cell computes the mean and the standard deviation of the center of the first window. The standard deviation
# is large for empty scenes, and for scenes in which either of two objects may be inferred first.

# %%
center = posterior.posterior["z_where"].sel(step=1, where=["x", "y"])
center.mean(("chain", "draw")).to_pandas(), center.std(("chain", "draw")).to_pandas()

# %% [markdown]
# ## The posterior over counts
# The bars show q(n | x) for these scenes and for the scenes in which the most probable count has the lowest
# probability.

# %%
counts = inspect.count_posterior(guide, scenes[:], num_samples=4)
titles = [f"truth: {n}" for n in scenes.counts[:10].tolist()]
plotting.probability_bars(counts[:10].numpy(), titles, "objects")

# %%
uncertain = counts.max(1).values.argsort()[:10]
plotting.probability_bars(
    counts[uncertain].numpy(), [f"truth: {n}" for n in scenes.counts[uncertain].tolist()], "objects"
)

# %%
view = inspect.infer_scenes(model, guide, scenes[uncertain])
arrays = (view.scenes, view.reconstruction.clamp(0, 1), view.z_pres, view.z_where, scenes.counts[uncertain])
plotting.scenes_with_windows(*(array.numpy() for array in arrays))

# %% [markdown]
# ## Samples from the prior

# %%
samples = inspect.sample_scenes(model, 10, count=2).clamp(0, 1)
plotting.image_rows([samples.numpy()], ["two objects"])
