"""Plots that several systems have in common."""

from pathlib import Path

from matplotlib.figure import Figure

from pplmodels import inspect, plotting
from pplmodels.data import Images
from pplmodels.io import atomic_write
from pplmodels.metrics import posterior_mean_variances
from pplmodels.sites import base_site_name


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure atomically as PNG. Raises :class:`pplmodels.errors.StorageError`."""
    atomic_write(path, lambda temporary: plotting.save(figure, temporary))


def curves_picture(metrics: list[dict], folder: Path) -> None:
    """Write curves.png, the bounds and the KL of each site during training, if there are metrics."""
    if not metrics:
        return
    names = list(metrics[-1])
    bounds = ("_elbo", "_iw_bound")
    groups = [[name for name in names if name.endswith(bounds)], [name for name in names if name.startswith("kl/")]]
    save_picture(plotting.curves(metrics, [group for group in groups if group]), folder / "curves.png")


def image_pictures(model, guide, images: Images, metrics: list[dict], folder: Path) -> None:
    """Write curves.png, if there are metrics, and for images reconstructions.png and samples.png (from the prior).

    Models with a single latent of several dimensions per image also get interpolations.png (between latents of
    images), manifold.png (a plane of latents) and prior.png (prior samples next to posterior samples). Models with
    several latent layers get layers.png (images whose lower layers are resampled).
    """
    curves_picture(metrics, folder)
    if len(images.shape) != 3:
        return
    x = images.head(12)[:]
    half = len(x) // 2
    rows = {
        "reconstructions": ([x, inspect.reconstruct(model, guide, x)], ["image", "p(x | z)"]),
        "samples": (inspect.sample_means(model, 48).unflatten(0, (4, 12)), [""] * 4),
    }
    codes = posterior_mean_variances(guide, [x])
    sites = [site for site, variances in codes.items() if len(variances) > 1]
    if len(sites) == 1 and half > 0:
        between = inspect.interpolate(model, guide, x[:half], x[half : 2 * half], 12, sites[0])
        rows["interpolations"] = between, [""] * half
    if len({base_site_name(site) for site in codes}) > 1:
        layers = list(codes)  # top-down, in the guide's sampling order
        kept = [layers[:number] for number in range(len(layers), -1, -1)]
        labels = ["image", "all kept", *(f"new to {layer}" for layer in reversed(layers))]
        rows["layers"] = [x, *(inspect.resample(model, guide, x, keep) for keep in kept)], labels
    for name, (images_, labels) in rows.items():
        figure = plotting.image_rows([row.clamp(0, 1).cpu().numpy() for row in images_], labels)
        save_picture(figure, folder / f"{name}.png")
    if len(sites) == 1:
        plane, coordinates = inspect.manifold(model, guide, images.head(images.at_once(1000))[:], site=sites[0])
        down, right = (f"coordinate {number}" for number in coordinates)
        save_picture(plotting.image_plane(plane.clamp(0, 1).cpu().numpy(), (down, right)), folder / "manifold.png")
        clouds, _ = inspect.prior_and_aggregate_posterior(model, guide, images.head(images.at_once(1000))[:], sites[0])
        save_picture(
            plotting.scatter({name: cloud.cpu().numpy() for name, cloud in clouds.items()}), folder / "prior.png"
        )
