"""Free bits: a KL without a penalty below a threshold (Kingma et al. 2016, arXiv 1606.04934, appendix C.8)."""

from pyro.infer import TraceGraph_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pplmodels import distributed
from pplmodels.sites import random_sites


class FreeBits_ELBO(TraceGraph_ELBO):
    """TraceGraph_ELBO without a KL gradient for latent sites whose batch-averaged KL is below ``free`` nats.

    .. code-block:: text

        surrogate = E log p(x | z) - sum over sites max(free, mean over images of KL_site)

    This prevents posterior collapse before the decoder has learned to use a site (Kingma et al. 2016, arXiv 1606.04934,
    appendix C.8). The returned value is the unmodified bound. All sites of the guide must be reparameterized.

    Arguments:
        free: threshold in nats per image and site.
    """

    def __init__(self, free: float, **options):
        super().__init__(**options)
        self.free = free

    def _loss_and_surrogate_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        bound, surrogate = super()._loss_and_surrogate_loss_particle(model_trace, guide_trace)
        model_sites = dict(random_sites(model_trace))
        for name, site in random_sites(guide_trace):
            if not site["fn"].has_rsample:
                raise ValueError(f"site {name} is not reparameterized, but free bits need the gradient of its KL")
            kl = distributed.all_reduce((site["log_prob"] - model_sites[name]["log_prob"]).sum())
            kl = kl / distributed.world_size()
            surrogate = surrogate + (self.free * site["log_prob"].numel() - kl).clamp(min=0)
        return bound, surrogate
