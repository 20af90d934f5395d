"""Load a trained pair from its run folder and evaluate it on held-out images, optionally with tighter bounds."""

from pplmodels.systems import run_script
from pplmodels.systems.evaluation import main

if __name__ == "__main__":
    run_script(main)
