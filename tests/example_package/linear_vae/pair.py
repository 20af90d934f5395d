"""A linear decoder and a linear encoder."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method

from pplmodels.module import PairModule, data_plate


class LinearVAE(PairModule):
    """z ~ N(0, I) and x ~ N(W z + b, scale^2), for images ``(B, C, H, W)``."""

    role = "model"

    def __init__(self, image, z_dim=4):
        super().__init__("linear_vae")
        self.image, self.z_dim = tuple(image), z_dim
        self.decoder = torch.nn.Linear(z_dim, math.prod(image))
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    @pyro_method
    def p_z(self):
        return dist.Normal(self.log_scale.new_zeros(self.z_dim), 1.0).to_event(1)

    @pyro_method
    def p_x(self, z):
        mean = self.decoder(z).unflatten(-1, self.image)
        return dist.Normal(mean, self.log_scale.exp()).to_event(3)

    def forward(self, x=None, n=None):
        with data_plate(n if x is None else len(x)):
            return pyro.sample("x", self.p_x(pyro.sample("z", self.p_z())), obs=x)


class LinearGuide(PairModule):
    """q(z | x), a normal distribution whose mean is linear in x."""

    role = "guide"

    def __init__(self, image, z_dim=4):
        super().__init__("linear_guide")
        self.encoder = torch.nn.Linear(math.prod(image), z_dim)
        self.log_scale = torch.nn.Parameter(torch.zeros(z_dim))

    @pyro_method
    def q_z(self, x):
        return dist.Normal(self.encoder(x.flatten(-3)), self.log_scale.exp()).to_event(1)

    def forward(self, x=None, n=None):
        with data_plate(len(x)):
            pyro.sample("z", self.q_z(x))
