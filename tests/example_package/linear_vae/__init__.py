"""A package with a pair and a system of its own: probabilistic PCA of images, under the scripts of pplmodels."""
