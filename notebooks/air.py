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
# # AIR: who is in the picture?
#
# A scene holds zero, one or two handwritten digits. AIR learns, without being told, how many there are, where,
# and what they look like.

# %%
# %matplotlib inline
import tempfile

import torch

from pplmodels import inspect, load_pair, plotting
from pplmodels.data import scene_set

# %% [markdown]
# A short training on scenes of the built-in digits. If you have run `python scripts/train_air.py`, put the folder that
# it left under `runs/` here instead: it trains longer.

# %%
folder = tempfile.mkdtemp() + "/air"
small = "--num-steps 2 --window 20 --what-dim 20 --train-scenes 20000 --test-scenes 1000 --batch-size 64"
# %run ../scripts/train_air.py --steps 1200 --count-steps 200 1000 --eval-every 1200 {small} --out {folder}

# %%
model, guide = load_pair(folder)
scenes = scene_set("digits", num_train=10, num_test=2000).test
x = scenes.head(10)[:]

# %% [markdown]
# ## What it sees
# The windows are numbered in the order in which the guide found their objects. Below: what the model draws there.

# %%
torch.manual_seed(0)
view = inspect.infer_scenes(model, guide, x)
arrays = (view.scenes, view.reconstruction.clamp(0, 1), view.z_pres, view.z_where, scenes.counts[:10])
plotting.scenes_with_windows(*(array.numpy() for array in arrays))

# %% [markdown]
# ## p(z | x), with names

# %%
posterior = inspect.posterior(model, guide, x, num_samples=200)
posterior.posterior

# %% [markdown]
# The centre of the first window: its mean over draws, and how far draws are apart. That is much where there is nothing
# to see, or where either of two objects may come first.

# %%
centre = posterior.posterior["z_where"].sel(step=1, where=["x", "y"])
centre.mean(("chain", "draw")).to_pandas(), centre.std(("chain", "draw")).to_pandas()

# %% [markdown]
# ## How many?
# q(n | x) of these scenes, and of the scenes about which the guide is least sure.

# %%
counts = inspect.count_posterior(guide, scenes[:], num_samples=4)
titles = [f"truth: {n}" for n in scenes.counts[:10].tolist()]
plotting.probability_bars(counts[:10].numpy(), titles, "objects")

# %%
unsure = counts.max(1).values.argsort()[:10]
plotting.probability_bars(counts[unsure].numpy(), [f"truth: {n}" for n in scenes.counts[unsure].tolist()], "objects")

# %%
view = inspect.infer_scenes(model, guide, scenes[unsure])
arrays = (view.scenes, view.reconstruction.clamp(0, 1), view.z_pres, view.z_where, scenes.counts[unsure])
plotting.scenes_with_windows(*(array.numpy() for array in arrays))

# %% [markdown]
# ## Scenes that AIR dreams of

# %%
dreamt = inspect.sample_scenes(model, 10, count=2).clamp(0, 1)
plotting.image_rows([dreamt.numpy()], ["two objects"])
