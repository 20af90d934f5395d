"""The generative models, one file per paper."""
