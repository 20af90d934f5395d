"""Plain torch networks; nothing here knows Pyro."""

from pplmodels.nn.leash import leash
from pplmodels.nn.mlp import mlp
from pplmodels.nn.recurrent import ContextLSTMCell
from pplmodels.nn.spatial_transformer import read_window, write_window

__all__ = ["ContextLSTMCell", "leash", "mlp", "read_window", "write_window"]
