"""Train DRAW, which generates an image step by step, on binary or color images."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "draw")

if __name__ == "__main__":
    run_script(main)
