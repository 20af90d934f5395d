"""How the pairs of this project are trained, measured and plotted. One module per system, found by an entry point."""
