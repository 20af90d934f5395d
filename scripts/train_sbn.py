"""Train a sigmoid belief network, whose latents are binary, on binary images."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "sbn")

if __name__ == "__main__":
    run_script(main)
