"""Checks that observed values have the shapes of their distributions."""

from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pplmodels.sites import Site


class Fitting(Messenger):
    """Raises ValueError at an observed site whose value is larger than its distribution, if Pyro's validation is on.

    Distributions check the shapes of their own events, but not the dimensions added by ``.to_event()``: a value that
    broadcasts against these dimensions would silently be scored several times.
    """

    def _pyro_post_sample(self, msg) -> None:
        if not msg["is_observed"] or not is_validation_enabled():
            return
        if isinstance(msg["value"], Tensor) and not site_is_subsample(msg) and (sentence := too_large(msg)):
            raise ValueError(sentence)


def too_large(site: Site) -> str:
    """A sentence about why an observed value does not broadcast to its distribution's shape, or "" if it does.

    Sizes are not checked in plates without a size, outside of plates, and in the dimensions of a distribution's own
    events, which it checks itself.
    """
    found, expected = tuple(site["value"].shape), tuple(site["fn"].shape())
    events = len(site["fn"].event_shape)
    frames = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
    checked = list(_repeated(site["fn"]))
    checked += [dim - events for dim in range(events - len(found), 0) if frames and frames.get(dim, 0) >= 0]
    if all(_size(found, dim) in (1, _size(expected, dim)) for dim in checked):
        return ""
    return f"the observed {site['name']} has shape {found}, but its distribution has shape {expected}{_remedy(site)}"


def other_event(site: Site) -> str:
    """A sentence about an observed value whose event shape differs from its distribution's, or "" if they agree."""
    found, expected = tuple(site["value"].shape), tuple(site["fn"].shape())
    if all(_size(found, dim) == _size(expected, dim) for dim in _repeated(site["fn"])):
        return ""
    events = len(site["fn"].event_shape)
    return (
        f"the observed {site['name']} has event shape {found[-events:]}, but its distribution has event shape "
        f"{expected[-events:]}, so each value would be counted several times."
    )


def _repeated(distribution: TorchDistributionMixin) -> range:
    """The event dimensions, counted from the right, that were added by ``.to_event()``."""
    own = distribution
    while isinstance(own, (Independent, MaskedDistribution, ExpandedDistribution)):
        own = own.base_dist
    return range(-len(distribution.event_shape), -len(own.event_shape))


def _size(shape: tuple[int, ...], dim: int) -> int:
    return shape[dim] if len(shape) >= -dim else 1


def _remedy(site: Site) -> str:
    """The end of the sentence: the fix if the channels are last, otherwise a period."""
    shape, event = tuple(site["value"].shape), tuple(site["fn"].event_shape)
    first = len(shape) - len(event)
    if len(event) > 1 and first >= 0 and (shape[-1], *shape[first:-1]) == event:
        return f"; if its channels are last, pass {site['name']}.movedim(-1, {first})."
    return "."
