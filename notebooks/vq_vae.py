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
# # VQ-VAE: codes and their prior
#
# The encoder maps an image to a small grid of integer codes. Afterward, a PixelCNN learns a prior over these grids.

# %%
# %matplotlib inline
import torch
from torch.nn.functional import interpolate
from tqdm.auto import trange

from guides import EmptyGuide, VQGuide
from pplmodels import VQVAE, GatedPixelCNN, inspect, plotting
from pplmodels.data import load_images
from pplmodels.infer import SVI, adam

torch.manual_seed(0)
digits = load_images("digits")
train, test = (
    interpolate(part[:], scale_factor=2, mode="bilinear").mul(255).round() / 255 for part in (digits.train, digits.test)
)

# %% [markdown]
# ## Stage one: images to codes and back
# An image of 16x16 pixels is encoded by a 4x4 grid of codes from a codebook of 32.

# %%
sizes = {"channels": 32, "blocks": 1}
model = VQVAE(image=(1, 16, 16), codes=32, dim=16, **sizes)
guide = VQGuide(model, **sizes)
guide.init_codebook(train[:128])
svi = SVI(model, guide, adam(model, guide, 2e-3), compile=True)
for _ in trange(500):
    svi.step(train[torch.randint(len(train), (64,))])
model.eval(), guide.eval()
codes = inspect.infer_codes(guide, test)

# %%
rows = [test[:12], inspect.reconstruct(model, guide, test[:12]).clamp(0, 1), codes[:12, None] / 31]
plotting.image_rows([row.numpy() for row in rows], ["image", "p(x | z)", "codes"])

# %%
plotting.histogram(codes.flatten().bincount(minlength=32).numpy(), "code", "positions")

# %% [markdown]
# ## Samples from a uniform prior
# So far, all grids of codes have the same probability.

# %%
plotting.image_rows([inspect.sample_means(model, 12).clamp(0, 1).numpy()], ["uniform"])

# %% [markdown]
# ## Stage two: a prior over codes
# The model of stage one is fixed, and its codes are the data of stage two. There are only 1,400 grids, and the PixelCNN
# would soon overfit, so it trains for a few steps.

# %%
maps = inspect.infer_codes(guide, train)
prior, empty = GatedPixelCNN(grid=(4, 4), levels=32, channels=32, layers=4, size=3, hidden=64), EmptyGuide()
svi = SVI(prior, empty, adam(prior, empty, 2e-3), compile=True)
for _ in trange(125):
    svi.step(maps[torch.randint(len(maps), (128,))])
per_code = -inspect.posterior(prior, empty, codes, num_samples=1).sample_stats["lp"].mean() / 16
shares = codes.flatten().bincount(minlength=32) / codes.numel()
unigram = -(shares * shares.clamp(min=1e-9).log()).sum()
print(
    f"nats a code: uniform {torch.tensor(32.0).log():.2f}, each by itself {unigram:.2f}, PixelCNN {float(per_code):.2f}"
)

# %% [markdown]
# These images are decoded from samples of this prior. At a temperature below 1, probable codes are sampled more often.

# %%
model.use_prior(prior.eval())
samples = {}
for prior.temperature in (1.0, 0.7):
    samples[f"at {prior.temperature}"] = inspect.sample_means(model, 12).clamp(0, 1).numpy()
plotting.image_rows(list(samples.values()), list(samples))
