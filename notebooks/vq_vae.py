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
# An image becomes a small map of whole numbers. What is likely among such maps is learned afterwards, by a
# PixelCNN.

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
# 16 x 16 pixels become 4 x 4 codes, each one of 32.

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
# ## Any codes will not do
# The model so far takes all maps to be equally likely.

# %%
plotting.image_rows([inspect.sample_means(model, 12).clamp(0, 1).numpy()], ["uniform"])

# %% [markdown]
# ## Stage two: which codes go together
# Stage one stays as it is; its codes are the data now. There are 1,400 maps of them, soon learned by heart: few steps.

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
# Images of such maps; at a temperature below 1, likely codes are drawn more often than they should be.

# %%
model.use_prior(prior.eval())
samples = {}
for prior.temperature in (1.0, 0.7):
    samples[f"at {prior.temperature}"] = inspect.sample_means(model, 12).clamp(0, 1).numpy()
plotting.image_rows(list(samples.values()), list(samples))
