"""Train AIR (Attend, Infer, Repeat) to find, count and draw the objects of scenes."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "air")

if __name__ == "__main__":
    run_script(main)
