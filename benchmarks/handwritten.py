"""Handwritten training steps in plain torch, the reference of benchmarks/step_time.py.

They use the pairs' networks and draw the same noise in the same order. With the same seed, their losses equal those
of SVI with TraceGraph_ELBO.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad, softplus

from pplmodels.distributions import WrappedNormal
from pplmodels.distributions.presence import IMPOSSIBLE_LOGIT, presence_prior_logits
from pplmodels.distributions.wrapped_normal import EVEN
from pplmodels.nn import projected_clamp, read_window
from pplmodels.nn.renderer import KINDS

LOG_2PI = math.log(2 * math.pi)


def _normal_log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (-((value - loc) ** 2) / (2 * scale**2) - scale.log() - LOG_2PI / 2).sum(-1)


def _draw(loc: Tensor, scale: Tensor) -> Tensor:
    return loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))


def _decided(guide, features: Tensor, present: Tensor, prior_logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z_pres, sampled from the guide where the previous one was 1, and its log-probabilities in model and guide."""
    logits = projected_clamp(guide.presence(features).squeeze(-1) + guide.log_k, guide.presence_limit)
    logits = torch.where(present > 0, logits, IMPOSSIBLE_LOGIT)
    prior_logits = torch.where(present > 0, prior_logit, IMPOSSIBLE_LOGIT)
    present = torch.bernoulli(logits.detach().sigmoid())
    log_q = -binary_cross_entropy_with_logits(logits, present, reduction="none")
    log_p = -binary_cross_entropy_with_logits(prior_logits, present, reduction="none")
    return present, log_p, log_q


def _reinforced(surrogate, log_x, costs, scores, baselines) -> tuple[Tensor, Tensor]:
    """The negative ELBO, and the surrogate, in which each presence's score multiplies its own and all later costs."""
    downstream = log_x.detach()
    for own, score, baseline in reversed(list(zip(costs, scores, baselines, strict=True))):
        downstream = downstream + own
        surrogate = surrogate - (score * (downstream - baseline.detach())).sum()
        surrogate = surrogate + (downstream - baseline).square().sum()
    return -downstream.sum(), surrogate


def air_losses(model, guide, x: Tensor) -> tuple[Tensor, Tensor]:
    """The negative ELBO of a batch, and the surrogate with REINFORCE and baselines."""
    embedding = guide.embed(x.flatten(-3))
    gates, context = guide.lstm.gates(embedding), guide.baseline.context(embedding)
    maps = guide.attention.maps(x)
    present = x.new_ones(len(x))
    state = (x.new_zeros(len(x), guide.hidden_dim),) * 2
    z = x.new_zeros(len(x), guide.z_dim)
    marks = guide.attention.no_marks(maps)
    z_pres, z_where, z_what, own_costs, reparameterised, scores, baselines = ([] for _ in range(7))
    for prior_logit in model.presence_logits().unbind():
        state = guide.lstm(gates, z, state)
        proposal, raw = guide.proposal(state[0]).split((2, 1), -1)
        glance = guide.attention(maps, marks, proposal, softplus(raw).squeeze(-1))
        features = guide.predict(torch.cat([state[0], glance.features], -1))
        baselines.append(guide.baseline(context, state[0], present))
        present, log_p, log_q = _decided(guide, features, present, prior_logit)
        loc, raw = guide.where(features).chunk(2, -1)
        loc, scale = loc + pad(glance.point, (1, 0)), softplus(raw)
        where = _draw(loc, scale)
        kl = _normal_log_prob(where, loc, scale) - _normal_log_prob(where, model.where_loc, model.where_scale)
        hidden = guide.encoder(read_window(x, where, guide.window).flatten(-3))
        loc, raw = hidden.chunk(2, -1)
        scale = softplus(raw)
        what = _draw(loc, scale)
        kl = kl + _normal_log_prob(what, loc, scale) + (what.square() / 2 + LOG_2PI / 2).sum(-1)
        kl = torch.where(present > 0, kl, 0.0)
        own_costs.append((log_p - log_q - kl).detach())
        reparameterised.append(log_p - kl)
        scores.append(log_q)
        z_pres.append(present)
        z_where.append(where)
        z_what.append(what)
        pres = present[..., None]
        z = torch.cat([pres, pres * where, pres * what], -1)
        if len(z_pres) < model.num_steps:
            marks = marks + pres[..., None] * guide.attention.marks(maps, where)
    canvas = model.render(torch.stack(z_pres, -1), torch.stack(z_where, -2), torch.stack(z_what, -2))
    constant = math.log(model.pixel_scale) + LOG_2PI / 2
    log_x = (-((x - canvas) ** 2) / (2 * model.pixel_scale**2) - constant).flatten(1).sum(-1)
    surrogate = -log_x.sum() - sum(term.sum() for term in reparameterised)
    return _reinforced(surrogate, log_x, own_costs, scores, baselines)


def air3d_losses(model, guide, x: Tensor) -> tuple[Tensor, Tensor]:
    """The negative ELBO of a batch, and the surrogate with REINFORCE and baselines for presences and kinds."""
    left, maps, present = x, guide.feature_net(x), x.new_ones(len(x))
    whole = guide.pool(maps)
    context, kind_context = guide.baseline.context(whole), guide.kind_baseline.context(whole)
    solids, costs, kind_costs, reparameterised, scores, kind_scores, baselines, kind_baselines = ([] for _ in range(8))
    for prior_logit in presence_prior_logits(model.log_k, model.num_steps).unbind():
        seen = guide.attend(maps)
        features = guide.encode_glimpse(left, seen)
        baselines.append(guide.baseline(context, features, present))
        present, log_p, log_q = _decided(guide, features, present, prior_logit)
        kind_baselines.append(guide.kind_baseline(kind_context, features, present))
        logits = guide.kind(features)
        likeliest = logits.argmax(-1)
        log_kinds = projected_clamp(logits - logits.max(-1, keepdim=True).values, guide.kind_limit).log_softmax(-1)
        kind = torch.multinomial(log_kinds.detach().exp(), 1)
        log_q_kind = torch.where(present > 0, log_kinds.gather(-1, kind).squeeze(-1), 0.0)
        kind_cost = (-math.log(len(KINDS)) * present - log_q_kind).detach()
        shift, raw = guide.place(features).chunk(2, -1)
        loc, scale = guide.renderer.standing_at(seen) + shift, softplus(raw) + 1e-3
        place = _draw(loc, scale)
        kl = _normal_log_prob(place, loc, scale)
        kl = kl - _normal_log_prob(place, x.new_zeros(()), x.new_tensor(model.place_scale))
        *turn, cos, sin, raw = guide.yaw(features).unbind(-1)
        share = guide.repeats[likeliest]
        loc = share * torch.where(share < 1, torch.atan2(sin, cos), torch.atan2(*turn))
        scale = share * projected_clamp(softplus(raw) + 1e-3, guide.yaw_limit)
        q_yaw = WrappedNormal(loc, torch.where(share > 0, scale, EVEN), validate_args=False)
        yaw = q_yaw.rsample()
        kl = torch.where(present > 0, kl + q_yaw.log_prob(yaw) + LOG_2PI, 0.0)
        costs.append((log_p - log_q - kl).detach() + kind_cost)
        kind_costs.append(kind_cost)
        reparameterised.append(log_p - kl)
        scores.append(log_q)
        kind_scores.append(log_q_kind)
        solids.append((present, kind.squeeze(-1), place, yaw))
        if len(solids) < model.num_steps:
            left = guide.erase(left, place)
            maps = guide.feature_net(left)
    pres, kind, place, yaw = zip(*solids, strict=True)
    picture = model.render(
        *(torch.stack(part, -1) for part in (pres, kind)), torch.stack(place, 1), torch.stack(yaw, -1)
    )
    constant = model.pixel_scale.log() + LOG_2PI / 2
    log_x = (-((x - picture) ** 2) / (2 * model.pixel_scale**2) - constant).flatten(1).sum(-1)
    surrogate = -log_x.sum() - sum(term.sum() for term in reparameterised)
    for own, score, baseline in zip(kind_costs, kind_scores, kind_baselines, strict=True):
        signal = log_x.detach() + own - baseline
        surrogate = surrogate - (score * signal.detach()).sum() + signal.square().sum()
    return _reinforced(surrogate, log_x, costs, scores, baselines)


def vae_losses(model, guide, x: Tensor) -> tuple[Tensor, Tensor]:
    """The negative ELBO of a batch, twice, because it is its own surrogate."""
    loc, raw = guide.encoder(x).chunk(2, -1)
    scale = softplus(raw)
    z = _draw(loc, scale)
    kl = _normal_log_prob(z, loc, scale) + (z.square() / 2 + LOG_2PI / 2).sum(-1)
    loss = kl.sum() + binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
    return loss.detach(), loss


def draw_losses(model, guide, x: Tensor) -> tuple[Tensor, Tensor]:
    """DRAW's negative ELBO of a batch, twice, because it is its own surrogate."""
    seen, reader = guide.reader.look(x), (guide.h, guide.c)
    painter, canvas = (model.h, model.c), model.canvas
    kl = 0.0
    for _ in range(model.num_steps):
        reader = guide.reader(seen, x, x - canvas.sigmoid(), painter[0], reader)
        loc, log_scale = guide.code(reader[0]).chunk(2, -1)
        scale = log_scale.exp()
        z = _draw(loc, scale)
        kl = kl + _normal_log_prob(z, loc, scale) + (z.square() / 2 + LOG_2PI / 2).sum(-1)
        painter = model.lstm(z, painter)
        canvas = canvas + model.writer(painter[0])
    loss = kl.sum() + binary_cross_entropy_with_logits(canvas, x, reduction="sum")
    return loss.detach(), loss


def vq_losses(model, guide, x: Tensor) -> tuple[Tensor, Tensor]:
    """VQ-VAE's negative ELBO of a batch plus both distances, twice, because it is its own surrogate."""
    codebook, z_e = model.codebook, guide.encoder(x)
    codes = codebook.nearest(z_e)
    codebook.update_ema(z_e, codes)
    e = codebook.embed(codes)
    log_x = model.likelihood(model.decoder(z_e + (e - z_e).detach())).log_prob(x)
    distances = guide.commitment * (z_e - e.detach()).square().sum()
    if codebook.decay is None:
        distances = distances + (z_e.detach() - e).square().sum()
    loss = codes.numel() * math.log(len(codebook)) - log_x.sum() + distances
    return loss.detach(), loss


def map_losses(model, guide, x: Tensor) -> tuple[Tensor, Tensor]:
    """PixelCNN's negative log-probability of a batch, twice, because it is its own surrogate."""
    loss = cross_entropy(model.network(x), x, reduction="sum")
    return loss.detach(), loss


class HandwrittenStep:
    """A training step as one would write it by hand for one pair: losses, backward and a fused Adam step."""

    def __init__(self, losses, model: nn.Module, guide: nn.Module, optim: torch.optim.Optimizer):
        self.losses, self.model, self.guide, self.optim = losses, model, guide, optim

    def step(self, x: Tensor) -> Tensor:
        """One training step; returns the loss per image."""
        self.optim.zero_grad(set_to_none=True)
        loss, surrogate = self.losses(self.model, self.guide, x)
        surrogate.backward()
        self.optim.step()
        return loss / len(x)
