"""Generate scenes with true boxes: write the .npz file that train_air.py --scenes reads, and a picture of some scenes."""

from pplmodels.systems import run_script
from pplmodels.systems.scene_files import main

if __name__ == "__main__":
    run_script(main)
