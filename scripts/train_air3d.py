"""Train AIR3D to infer the number, kinds, positions and orientations of solids on a table."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "air3d")

if __name__ == "__main__":
    run_script(main)
