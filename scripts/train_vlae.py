"""Train a VLAE: a convolutional VAE whose prior (or, with --flow posterior, posterior) is an autoregressive flow."""

import train_image_vae

from pplmodels.training import cli


def main(argv: list[str] | None = None) -> None:
    """Run the script of the image VAE, with a flow prior by default."""
    train_image_vae.main(argv, __doc__, "vlae", "prior")


if __name__ == "__main__":
    cli.run_script(main)
