"""Train a VAE with fully connected networks on binary images."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "vae")

if __name__ == "__main__":
    run_script(main)
