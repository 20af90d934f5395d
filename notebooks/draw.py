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
# # DRAW: images step by step
#
# DRAW generates an image in steps. In each step it reads the image through a window of 5x5 filters, and writes to the
# canvas through another window.

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
# The digits are enlarged by a factor of three and binarized.

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
# ## Reconstructions of test images
# Green windows are read, red windows are written.

# %%
x = test[::50][:8]
painting = inspect.reconstruction_steps(model.eval(), guide.eval(), x)
arrays = [array.numpy() for array in (painting.canvases[1:], painting.reading, painting.writing)]
plotting.painting_rows(x.numpy(), *arrays)

# %%
path = tempfile.mkdtemp() + "/reconstruction.gif"
plotting.canvas_gif(path, painting.canvases.numpy(), *arrays[1:])
Image(filename=path)

# %% [markdown]
# ## Samples
# The latents of each step are sampled from the prior.

# %%
sampled = inspect.generation_steps(model, 8)
plotting.painting_rows(None, sampled.canvases[1:].numpy(), None, sampled.writing.numpy())

# %% [markdown]
# ## Which steps are used?
# The table shows the posterior standard deviation of each step's latents, relative to that of the prior. If it is close
# to 1, the step carries no information.

# %%
posterior = inspect.posterior(model, guide, x, num_samples=100)
posterior.posterior["z"].std("draw").mean(("chain", "latent")).to_pandas()
