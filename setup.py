"""Installs the packages ``pplmodels`` (models and engine) and ``guides`` (their guides)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# The package says its version; importing it here would need all of its requirements.
VERSION = re.search('^__version__ = "(.+)"$', (HERE / "pplmodels/__init__.py").read_text("utf-8"), re.MULTILINE)[1]
NOTEBOOKS = ["jupytext>=1.16", "nbclient>=0.10", "ipykernel>=6.29", "ipywidgets>=8"]
# mypy 1.18.1 crashes on the package; the others describe packages that have no types of their own
TYPES = [
    "mypy>=1.19",
    "pandas-stubs>=2.3",
    "scipy-stubs>=1.15",
    "types-networkx>=3.4",
    "types-psutil>=7",
    "types-PyYAML>=6",
    "types-tqdm>=4.67",
]
SCENES = ["scikit-image>=0.22"]  # the photograph of coins
DOCS = ["sphinx>=7.4", "myst-nb>=1.1", "furo>=2024.8"]

setup(
    name="pplmodels",
    version=VERSION,
    description="Deep latent-variable models as Pyro model/guide pairs",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=[
        "pyro",
        "pytorch",
        "probabilistic programming",
        "variational inference",
        "latent-variable models",
        "variational autoencoder",
        "deep generative models",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["pplmodels", "pplmodels.*", "guides", "guides.*"]),
    package_data={"pplmodels": ["py.typed"], "guides": ["py.typed"]},
    entry_points={"pplmodels.systems": ["guides = guides.systems"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "pyro-ppl>=1.9.1",
        "numpy>=1.26",
        "matplotlib>=3.8",
        "networkx>=2.8",
        "pandas>=2.1",
        "xarray>=2024.10",
        "arviz>=0.22",
        "pillow>=9.4",
        "scikit-learn>=1.3",
        "scipy>=1.9",
        "safetensors>=0.4.3",
        "tensorboard>=2.14",
        "tqdm>=4.65",
        "filelock>=3.20",
        "pydantic>=2.10",
        "pyyaml>=6.0",
        "psutil>=5.9",
    ],
    extras_require={
        "test": [
            "pytest>=8,<9.2",  # with later ones pytest-xdist 3.8 does not keep groups together
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.15.13",
            "zuko>=1.2",
            *TYPES,
            *SCENES,
            *NOTEBOOKS,
            *DOCS,
        ],
        "notebooks": ["jupyterlab>=4", *NOTEBOOKS],
        "docs": DOCS,
        "scenes": SCENES,
        "benchmark": ["numpyro>=0.15"],
    },
)
