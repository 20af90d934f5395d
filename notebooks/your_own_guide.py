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
# # Write your own guide
#
# A guide is a module with a `forward` method and methods that return distributions. You can override one of them and
# train the pair under the same SVI.

# %%
# %matplotlib inline
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import nn

from guides import MLPGuide
from pplmodels import MLPVAE, inspect, plotting
from pplmodels.data import load_images
from pplmodels.infer import SVI, adam
from pplmodels.metrics import importance_weighted, log_probs

images = load_images("digits")
train, test = images.train[:].round(), images.test[:].round()
sizes = {"image": (1, 8, 8), "z_dim": 8, "hidden_dims": (200,)}

# %% [markdown]
# ## The original pair

# %%
model, guide = MLPVAE(**sizes), MLPGuide(**sizes)
inspect.site_table(model, guide, train[:16])

# %%
found = inspect.graph(model, guide, train[:16])
plotting.graph({"model": found.model, "guide": found.guide})


# %% [markdown]
# ## A guide with a full covariance
# In `MLPGuide`, the coordinates of z are independent given x. This subclass gives them a full covariance matrix.


# %%
class CorrelatedGuide(MLPGuide):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.lower = nn.Linear(2 * sizes["z_dim"], sizes["z_dim"] ** 2)

    @pyro_method
    def q_z(self, x):
        hidden = self.encoder(x)
        loc, raw = hidden.chunk(2, -1)
        lower = 0.1 * self.lower(hidden).unflatten(-1, (loc.shape[-1],) * 2).tril(-1)
        scale = torch.diag_embed(nn.functional.softplus(raw))
        return dist.MultivariateNormal(loc, scale_tril=lower + scale)


inspect.check_pair(MLPVAE(**sizes), CorrelatedGuide(**sizes), train[:16])


# %%
def trained(guide_class):
    """A pair from the same start, after 1,500 steps, and its bounds on the test images."""
    torch.manual_seed(0)
    model, guide = MLPVAE(**sizes), guide_class(**sizes)
    svi = SVI(model, guide, adam(model, guide, 1e-3), compile=True)
    for _ in range(1500):
        svi.step(train[torch.randint(len(train), (128,))])
    model.eval(), guide.eval()
    bounds = [float(importance_weighted(partial(log_probs, model, guide), [test], k).bound.mean()) for k in (1, 100)]
    return model, guide, bounds


results = {guide_class.__name__: trained(guide_class) for guide_class in (MLPGuide, CorrelatedGuide)}
for name, (_, _, (elbo, weighted)) in results.items():
    print(f"{name:16} ELBO {elbo:.2f}, with 100 samples {weighted:.2f}")

# %% [markdown]
# ## The new posterior

# %%
model, guide, _ = results["CorrelatedGuide"]
draws = inspect.posterior(model, guide, test[:1], num_samples=500).posterior["z"].values[0, :, 0]
correlation = abs(torch.corrcoef(torch.from_numpy(draws).T)).fill_diagonal_(0)
first, second = divmod(int(correlation.argmax()), 8)
plotting.scatter({f"z[{first}], z[{second}] of one image": draws[:, [first, second]]})


# %% [markdown]
# ## Checking a pair
# This guide has a site `mood` that the model does not have. `check_pair` reports it before training.


# %%
class HastyGuide(PyroModule):
    def __init__(self):
        super().__init__("hasty_guide")
        self.linear = nn.Linear(64, 8)

    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.linear(x.flatten(-3)), 1.0).to_event(1))
            pyro.sample("mood", dist.Normal(0.0, 1.0))


inspect.check_pair(MLPVAE(**sizes), HastyGuide(), train[:16])
