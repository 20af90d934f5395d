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
# # DRAW: watch it paint
#
# DRAW paints an image in steps. At each it looks through a window of 5 x 5 filters, decides what to add, and
# paints through another.

# %%
# %matplotlib inline
import tempfile

import torch
from IPython.display import Image
from torch.nn.functional import interpolate
from tqdm.auto import trange

from guides import DRAWGuide
from pplmodels import DRAW, inspect, plotting
from pplmodels.data import load_images
from pplmodels.infer import SVI, adam

# %% [markdown]
# Digits at three times their size, in black and white.

# %%
digits = load_images("digits")
train, test = (
    interpolate(part[:], scale_factor=3, mode="bicubic").round().clamp(0, 1) for part in (digits.train, digits.test)
)
plotting.image_rows([test[:10].numpy()], ["digits"])

# %%
torch.manual_seed(0)
model = DRAW(image=(1, 24, 24), num_steps=8, z_dim=20, hidden_dim=128, write_window=5, canvas_start=-2.0)
guide = DRAWGuide(model, hidden_dim=128, read_window=5)
svi = SVI(model, guide, adam(model, guide, 2e-3), clip_norm=50, compile=True)
steps = trange(500)
for step in steps:
    loss = svi.step(train[torch.randint(len(train), (64,))])
    if step % 50 == 49:
        steps.set_postfix(loss=f"{float(loss):.1f} nats")

# %% [markdown]
# ## CanvasSteps test images again
# Green: where it looked. Red: where it painted.

# %%
x = test[::50][:8]
painting = inspect.reconstruction_steps(model.eval(), guide.eval(), x)
arrays = [array.numpy() for array in (painting.canvases[1:], painting.reading, painting.writing)]
plotting.painting_rows(x.numpy(), *arrays)

# %%
film = tempfile.mkdtemp() + "/film.gif"
plotting.canvas_gif(film, painting.canvases.numpy(), *arrays[1:])
Image(filename=film)

# %% [markdown]
# ## Dreaming
# The codes come from the prior, step by step.

# %%
dream = inspect.generation_steps(model, 8)
plotting.painting_rows(None, dream.canvases[1:].numpy(), None, dream.writing.numpy())

# %% [markdown]
# ## Which steps tell something?
# How far draws of a step's code are apart, in units of the prior's deviation: near 1, the step says nothing.

# %%
posterior = inspect.posterior(model, guide, x, num_samples=100)
posterior.posterior["z"].std("draw").mean(("chain", "latent")).to_pandas()
