"""Plain torch networks; nothing here knows Pyro."""

from pplmodels.nn.conv import conv_decoder, conv_encoder
from pplmodels.nn.leash import leash
from pplmodels.nn.mlp import mlp
from pplmodels.nn.recurrent import ContextLSTMCell, RowLSTM
from pplmodels.nn.spatial_transformer import read_window, write_window

__all__ = ["ContextLSTMCell", "RowLSTM", "conv_decoder", "conv_encoder", "leash", "mlp", "read_window", "write_window"]
