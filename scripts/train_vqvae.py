"""Train a VQ-VAE on images, and with --with-prior the prior of its codes."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "vq-vae")

if __name__ == "__main__":
    run_script(main)
