"""The benchmark's VAE in jitted NumPyro, which benchmarks/step_time.py includes if numpyro is installed."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from torch import Tensor

SIZES = {"encoder": (784, 512, 256, 128, 128), "decoder": (64, 128, 256, 512, 784)}


def _net(name: str, x: jax.Array) -> jax.Array:
    """A fully connected ReLU network with the initialization of torch's linear layers."""
    sizes = SIZES[name]
    for layer, (into, out) in enumerate(pairwise(sizes)):
        bound = into**-0.5

        def uniform(key, shape=(into, out), bound=bound):
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        weight = numpyro.param(f"{name}.{layer}.weight", uniform)
        bias = numpyro.param(f"{name}.{layer}.bias", jnp.zeros(out))
        x = x @ weight + bias
        if layer < len(sizes) - 2:
            x = jax.nn.relu(x)
    return x


def _model(x: jax.Array) -> None:
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 64)), 1.0).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=_net("decoder", z)).to_event(1), obs=x)


def _guide(x: jax.Array) -> None:
    loc, raw = jnp.split(_net("encoder", x), 2, -1)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw)).to_event(1))


class NumPyroStep:
    """A jitted step of NumPyro's SVI with Adam at 1e-3. The data are only transferred once."""

    def __init__(self):
        self.svi = SVI(_model, _guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
        self.update = jax.jit(self.svi.update)
        self.state, self.data = None, {}

    def step(self, x: Tensor) -> float:
        """One training step; returns the loss per image."""
        images = self.data.setdefault(id(x), jnp.asarray(np.asarray(x.flatten(1))))
        if self.state is None:
            self.state = self.svi.init(jax.random.PRNGKey(0), images)
        self.state, loss = self.update(self.state, images)
        return float(loss) / len(images)
