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
# # How far can a bound be trusted?
#
# log p(x) of a VAE is intractable. For probabilistic PCA it has a closed form, because x is normal. So the bounds can
# be compared with the exact value.

# %%
# %matplotlib inline
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.nn import PyroModule
from torch import nn

from pplmodels import inspect, plotting
from pplmodels.infer import SVI, adam


# %%
class PPCA(PyroModule):
    """z ~ N(0, I), x ~ N(W z, 0.5^2 I)."""

    def __init__(self):
        super().__init__("ppca")
        self.register_buffer("w", torch.randn(8, 3))

    def forward(self, x=None, n=None):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ self.w.T, 0.5).to_event(1), obs=x)


class LinearGuide(PyroModule):
    """q(z | x): a linear mean, and scales that are the same for all x and do not know of each other."""

    def __init__(self):
        super().__init__("linear_guide")
        self.loc, self.log_scale = nn.Linear(8, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.loc(x), self.log_scale.exp()).to_event(1))


torch.manual_seed(0)
model, guide = PPCA(), LinearGuide()
x = model(n=2000)
inspect.check_pair(model, guide, x)

# %%
svi = SVI(model, guide, adam(model, guide, 1e-2), compile=True)
losses = [svi.step(x) for _ in range(1500)]

# %% [markdown]
# ## The exact value and the bounds
# The coordinates of the exact posterior are correlated, and those of the guide are independent. So the ELBO stays below
# log p(x), however long the training is. The importance-weighted bound closes the gap with more samples.

# %%
covariance = model.w @ model.w.T + 0.25 * torch.eye(8)
exact = float(dist.MultivariateNormal(torch.zeros(8), covariance).log_prob(x).mean())
weights = inspect.posterior(model, guide, x, num_samples=1000).sample_stats["log_weight"].values[0]
ks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def bound(k):
    """The importance-weighted bound with k samples, over all groups of k draws."""
    groups = weights[: 1000 // k * k].reshape(-1, k, len(x))
    return float(np.mean(np.logaddexp.reduce(groups, 1) - np.log(k)))


figure = Figure(figsize=(6, 3.5), layout="constrained")
axis = figure.subplots()
axis.semilogx(ks, [bound(k) for k in ks], "o-", label="importance-weighted bound")
axis.axhline(exact, color="tab:red", label="log p(x)")
axis.set(xlabel="samples K (K = 1: the ELBO)", ylabel="nats")
axis.legend()
figure

# %% [markdown]
# ## Diagnostics without the exact value
# The importance weights show whether a bound is reliable. If a few of a thousand samples dominate the bound of an
# image, it is not. A Pareto k above 0.7 indicates the same.


# %%
def health():
    """How many of the samples count, and Pareto's k of the images."""
    found = inspect.weight_diagnostics(model, guide, x, num_samples=1000)
    print(f"effective samples of 1000: median {float(found.ess.median()):.0f}, least {float(found.ess.min()):.0f}")
    return plotting.pareto_shapes(found)


health()

# %% [markdown]
# The next guide is overconfident. Its ELBO is low, and its importance weights show the reason.

# %%
with torch.no_grad():
    guide.log_scale -= 1.5
weights = inspect.posterior(model, guide, x, num_samples=1000).sample_stats["log_weight"].values[0]
print(f"log p(x) {exact:.2f}, ELBO {bound(1):.2f}, with 1000 samples {bound(1000):.2f}")
health()
