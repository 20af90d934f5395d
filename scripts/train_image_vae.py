"""Train a convolutional VAE on color or gray images."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "image-vae")

if __name__ == "__main__":
    run_script(main)
