"""Compare the guide of a trained AIR3D run with a supervised network and with search on held-out images."""

from guides.systems.air3d_comparison import main
from pplmodels.systems import run_script

if __name__ == "__main__":
    run_script(main)
