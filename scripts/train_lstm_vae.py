"""Train a VAE with an LSTM encoder that reads images row by row and a transposed-convolution decoder."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "lstm-vae")

if __name__ == "__main__":
    run_script(main)
