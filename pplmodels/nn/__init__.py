"""Neural networks in plain torch, independent of Pyro."""

from pplmodels.nn.attention import FeatureMaps, SpatialAttention
from pplmodels.nn.conv import conv_decoder, conv_encoder
from pplmodels.nn.mlp import mlp
from pplmodels.nn.projected_clamp import projected_clamp
from pplmodels.nn.recurrent import ContextLSTMCell, ImageRowEncoder
from pplmodels.nn.spatial_transformer import read_window, write_window

__all__ = [
    "ContextLSTMCell",
    "FeatureMaps",
    "ImageRowEncoder",
    "SpatialAttention",
    "conv_decoder",
    "conv_encoder",
    "projected_clamp",
    "mlp",
    "read_window",
    "write_window",
]
