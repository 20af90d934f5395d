"""Train a PixelCNN on the codes of a trained VQ-VAE, or on the pixels of gray images."""

from functools import partial

from pplmodels.systems import run_script, train

main = partial(train, "pixelcnn")

if __name__ == "__main__":
    run_script(main)
