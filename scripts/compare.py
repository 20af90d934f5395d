"""Train systems that model images under one protocol, and write a report comparing them."""

from pplmodels.systems import run_script
from pplmodels.systems.comparison import main

if __name__ == "__main__":
    run_script(main)
