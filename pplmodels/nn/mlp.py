"""Fully connected networks."""

from collections.abc import Sequence

from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


def mlp(in_dim: int, hidden_dims: Sequence[int], out_dim: int | None = None, activation: str = "relu") -> nn.Sequential:
    """Linear layers with an activation after each hidden one: ``(..., in_dim) -> (..., out_dim)``.

    Without ``out_dim`` the network ends with the last hidden layer's activation, as a feature extractor.
    """
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers += [nn.Linear(in_dim, width), ACTIVATIONS[activation]()]
        in_dim = width
    if out_dim is not None:
        layers.append(nn.Linear(in_dim, out_dim))
    return nn.Sequential(*layers)
