"""Train a VLAE: a convolutional VAE whose prior or posterior is an autoregressive flow."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "vlae")

if __name__ == "__main__":
    run_script(main)
