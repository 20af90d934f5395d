"""Wrappers and effect handlers that change a pair's bound without changing its model and guide."""

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn


class ScaledKL(nn.Module):
    """Wraps a model or a guide and multiplies the log-probabilities of its latent sites by the buffer ``beta``.

    If model and guide are both wrapped, the bound is E log p(x | z) - beta KL (beta-VAE, Higgins et al. 2017;
    deterministic warm-up, Soenderby et al. 2016, arXiv 1602.02282, section 2.3). Train the wrapped modules and anneal
    both buffers (:class:`pplmodels.infer.Annealed`), but evaluate and save the unwrapped modules.
    """

    beta: Tensor

    def __init__(self, module: nn.Module, beta: float = 1.0):
        super().__init__()
        self.wrapped = module
        device = next(module.parameters()).device
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.get_default_dtype(), device=device))

    def forward(self, *args, **kwargs):
        """Run the wrapped module."""
        with _LatentScale(self.beta):
            return self.wrapped(*args, **kwargs)


class _LatentScale(Messenger):
    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.scale


class ModeMessenger(Messenger):
    """Sets every latent site of a program to the mode of its distribution."""

    def _pyro_sample(self, msg) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        function = msg["fn"]
        while isinstance(function, Independent | MaskedDistribution):
            function = function.base_dist
        msg["value"], msg["done"] = function.mode.expand(msg["fn"].shape()), True
