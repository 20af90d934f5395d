"""Train a ladder VAE, which has a hierarchy of latents, on binary images."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "ladder-vae")

if __name__ == "__main__":
    run_script(main)
