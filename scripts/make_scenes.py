"""Generate scenes with true boxes: the .npz file that train_air.py --scenes reads, and a picture."""

from pplmodels.systems import run_script
from pplmodels.systems.scene_files import main

if __name__ == "__main__":
    run_script(main)
