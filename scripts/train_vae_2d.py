"""Train a VAE with a 2-D latent on points from a 2-D Gaussian, whose negative entropy is the optimal ELBO."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "vae-2d")

if __name__ == "__main__":
    run_script(main)
