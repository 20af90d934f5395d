"""Train a system of any installed package by its name: ``python scripts/train.py NAME [OPTIONS]``."""

from pplmodels.systems import run_script
from pplmodels.systems.lookup import main

if __name__ == "__main__":
    run_script(main)
