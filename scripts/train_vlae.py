"""Train a VLAE: the convolutional VAE with an autoregressive-flow prior, or with --flow posterior its counterpart."""

import train_image_vae

from pplmodels.training import cli


def main(argv: list[str] | None = None) -> None:
    """The image VAE's script with a flow prior by default."""
    train_image_vae.main(argv, __doc__, "vlae", "prior")


if __name__ == "__main__":
    cli.run_script(main)
