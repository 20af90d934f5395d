"""Pairs as people write them who have read Pyro's examples and tutorials, and nothing of ours.

Each row builds a pair afresh and gives the arguments of its steps; ``refused`` is what SVI says where it cannot
compile.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True)
class Example:
    """How to build the pair, what a step is given, and how many images a loss is of."""

    build: Callable[[], tuple]
    arguments: Callable[[int], tuple] = lambda step: ()
    loss: Callable = TraceGraph_ELBO
    images: int = 1
    refused: str | None = None
    before: Callable | None = None  # what is done to model and guide before each step


def seeded(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


def rows(step: int, number: int = 6, width: int = 4) -> tuple:
    return (torch.randn(number, width, generator=seeded(step)),)


class SSVAE(nn.Module):
    """Semi-supervised: digits of three kinds, with labels in every other step (Kingma et al. 2014, M2)."""

    def __init__(self):
        super().__init__()
        self.encoder_y = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 3), nn.Softmax(dim=-1))
        self.encoder_z = nn.Sequential(nn.Linear(4 + 3, 8), nn.Softplus(), nn.Linear(8, 4))
        self.decoder = nn.Sequential(nn.Linear(2 + 3, 8), nn.Softplus(), nn.Linear(8, 4), nn.Sigmoid())

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        options = dict(dtype=xs.dtype, device=xs.device)
        with pyro.plate("data"):
            zs = pyro.sample("z", dist.Normal(torch.zeros(batch_size, 2, **options), 1.0).to_event(1))
            alpha_prior = torch.ones(batch_size, 3, **options) / 3.0
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            loc = self.decoder(torch.cat([zs, ys], -1))
            pyro.sample("x", dist.Bernoulli(loc).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(self.encoder_y(xs)))
            loc, raw = self.encoder_z(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    def model_classify(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            if ys is not None:
                with poutine.scale(scale=46.0):
                    pyro.sample("y_aux", dist.OneHotCategorical(self.encoder_y(xs)), obs=ys)

    def guide_classify(self, xs, ys=None):
        """No latent variables."""


def ss_vae():
    pair = SSVAE()
    return pair.model, pair.guide


def ss_vae_classifier():
    pair = SSVAE()
    return pair.model_classify, pair.guide_classify


def some_labels(step: int) -> tuple:
    xs = torch.rand(6, 4, generator=seeded(step)).round()
    return (xs,) if step % 2 else (xs, torch.eye(3)[torch.randint(3, (6,), generator=seeded(step))])


class CVAE(nn.Module):
    """Fills in the half of an image that is masked, from what a baseline network makes of the other half."""

    def __init__(self):
        super().__init__()
        self.baseline = nn.Linear(4, 4)
        self.baseline.requires_grad_(False).eval()
        self.prior_net, self.generation_net = nn.Linear(8, 4), nn.Linear(2, 4)
        self.recognition_net = nn.Linear(8, 4)

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        with pyro.plate("data", xs.shape[0]):
            with torch.no_grad():
                y_hat = self.baseline(xs)
            loc, raw = self.prior_net(torch.cat([xs, y_hat], -1)).chunk(2, -1)
            zs = pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            loc = self.generation_net(zs).sigmoid()
            if ys is not None:
                mask_loc = loc[(xs == -1).view(-1, 4)].view(len(xs), -1)
                mask_ys = ys[xs == -1].view(len(xs), -1)
                pyro.sample("y", dist.Bernoulli(mask_loc, validate_args=False).to_event(1), obs=mask_ys)
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data", xs.shape[0]):
            loc, raw = self.recognition_net(torch.cat([xs, xs if ys is None else ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def cvae():
    pair = CVAE()
    return pair.model, pair.guide


def half_masked(step: int) -> tuple:
    ys = torch.rand(6, 4, generator=seeded(step)).round()
    xs = ys.clone()
    xs[:, 2:] = -1
    return xs, ys


class DMM(nn.Module):
    """A deep Markov model of sequences, whose KL is annealed, with a combiner over a backward RNN."""

    def __init__(self, packed=False):
        super().__init__()
        self.trans, self.emitter = nn.Linear(2, 4), nn.Linear(2, 3)
        self.rnn = nn.RNN(3, 5, nonlinearity="relu", batch_first=True)
        self.combiner = nn.Linear(7, 4)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, 5))
        self.packed = packed

    def model(self, batch, reverse, mask, lengths, annealing_factor=1.0):
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(batch.size(0), 2)
        with pyro.plate("z_minibatch", len(batch)):
            for t in pyro.markov(range(1, batch.size(1) + 1)):
                loc, raw = self.trans(z_prev).chunk(2, -1)
                with poutine.scale(None, annealing_factor):
                    z_t = pyro.sample(f"z_{t}", dist.Normal(loc, raw.exp()).mask(mask[:, t - 1 : t]).to_event(1))
                emission = dist.Bernoulli(self.emitter(z_t).sigmoid()).mask(mask[:, t - 1 : t]).to_event(1)
                pyro.sample(f"obs_x_{t}", emission, obs=batch[:, t - 1, :])
                z_prev = z_t

    def guide(self, batch, reverse, mask, lengths, annealing_factor=1.0):
        pyro.module("dmm", self)
        states = reverse
        if self.packed:
            states = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
        states, _ = self.rnn(states, self.h_0.expand(1, batch.size(0), 5).contiguous())
        if self.packed:
            states, _ = pad_packed_sequence(states, batch_first=True)
        z_prev = self.z_q_0.expand(batch.size(0), 2)
        with pyro.plate("z_minibatch", len(batch)):
            for t in pyro.markov(range(1, batch.size(1) + 1)):
                loc, raw = self.combiner(torch.cat([z_prev, states[:, t - 1]], -1)).chunk(2, -1)
                with poutine.scale(None, annealing_factor):
                    z_prev = pyro.sample(f"z_{t}", dist.Normal(loc, raw.exp()).mask(mask[:, t - 1 : t]).to_event(1))


def dmm(packed=False):
    pair = DMM(packed)
    return pair.model, pair.guide


def sequences(step: int) -> tuple:
    batch = torch.rand(3, 4, 3, generator=seeded(step)).round()
    lengths = torch.tensor([4, 2 + step % 3, 1])
    mask = torch.arange(4) < lengths[:, None]
    return batch, batch.flip(1), mask, lengths, torch.tensor(0.2 * (step + 1))


class SparseGammaDEF(PyroModule):
    """Two layers of gamma variables, and a guide of parameters on the softplus scale."""

    def __init__(self):
        super().__init__()
        self.alpha_z, self.beta_z = torch.tensor(0.1), torch.tensor(0.1)  # fixed, plain attributes
        self.softplus = nn.Softplus()

    def model(self, x):
        x_size = x.size(0)
        with pyro.plate("w_top_plate", 2 * 3):
            w_top = pyro.sample("w_top", dist.Gamma(self.alpha_z, self.beta_z * 3))
        with pyro.plate("w_bottom_plate", 3 * 4):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(torch.tensor(0.3), torch.tensor(0.1)))
        with pyro.plate("data", x_size):
            z_top = pyro.sample("z_top", dist.Gamma(self.alpha_z, self.beta_z).expand([2]).to_event(1))
            w = w_top.reshape(2, 3) if w_top.dim() == 1 else w_top.reshape(-1, 2, 3)
            mean = torch.matmul(z_top, w)
            z_bottom = pyro.sample("z_bottom", dist.Gamma(self.alpha_z, self.beta_z / (mean + 1e-6)).to_event(1))
            mean = torch.matmul(z_bottom, w_bottom.reshape(3, 4))
            pyro.sample("obs", dist.Poisson(mean + 1e-6).to_event(1), obs=x)


class SparseGammaGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.shapes = nn.ParameterDict({n: nn.Parameter(torch.full((s,), 0.5)) for n, s in (("wt", 6), ("wb", 12))})
        self.z = nn.Linear(4, 5)

    def forward(self, x):
        softplus = nn.functional.softplus
        with pyro.plate("w_top_plate", 6):
            pyro.sample("w_top", dist.Gamma(softplus(self.shapes["wt"]) + 0.1, 1.0))
        with pyro.plate("w_bottom_plate", 12):
            pyro.sample("w_bottom", dist.Gamma(softplus(self.shapes["wb"]) + 0.1, 1.0))
        with pyro.plate("data", x.size(0)):
            top, bottom = softplus(self.z(x)).split([2, 3], -1)
            pyro.sample("z_top", dist.Gamma(top + 0.1, 1.0).to_event(1))
            pyro.sample("z_bottom", dist.Gamma(bottom + 0.1, 1.0).to_event(1))


def counts(step: int) -> tuple:
    return (torch.poisson(torch.full((5, 4), 2.0), generator=seeded(step)),)


class LDAGuide(nn.Module):
    """Amortised topics of documents, given counts of words; parameters of words by pyro.module."""

    def __init__(self, args):
        super().__init__()
        self.layer = nn.Linear(args.num_words, args.num_topics)
        self.topic_weights = nn.Parameter(torch.zeros(args.num_topics))
        self.topic_words = nn.Parameter(torch.zeros(args.num_topics, args.num_words))

    def forward(self, data, args, batch_size=None):
        pyro.module("lda_guide", self)
        with pyro.plate("topics", args.num_topics):
            pyro.sample("topic_weights", dist.Gamma(self.topic_weights.exp() + 0.1, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(self.topic_words.exp() + 0.1))
        with pyro.plate("documents", args.num_docs, batch_size) as ind:
            words = data[:, ind]
            counted = torch.zeros(args.num_words, len(ind)).scatter_add(0, words, torch.ones(words.shape))
            pyro.sample("doc_topics", dist.Delta(self.layer(counted.transpose(0, 1)).softmax(-1), event_dim=1))


def lda_model(data, args, batch_size=None):
    with pyro.plate("topics", args.num_topics):
        topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / args.num_topics, 1.0))
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(args.num_words) / args.num_words))
    with pyro.plate("documents", args.num_docs, batch_size) as ind:
        data = data[:, ind]
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
        probs = doc_topics @ topic_words
        with pyro.plate("words", args.num_words_per_doc):
            pyro.sample("doc_words", dist.Categorical(probs), obs=data)


LDA = argparse.Namespace(num_topics=2, num_words=5, num_docs=6, num_words_per_doc=4)


def documents(step: int) -> tuple:
    return torch.randint(5, (4, 6), generator=seeded(step)), argparse.Namespace(**vars(LDA)), 4


def regression_data(step: int) -> tuple:
    x = torch.linspace(0, 1, 7) + 0.01 * step
    return x, (6 * x).sin() + 0.1 * torch.randn(7, generator=seeded(step))


def gaussian_process():
    x, y = regression_data(0)
    process = gp.models.GPRegression(x, y, gp.kernels.RBF(1), noise=torch.tensor(0.3))
    process.set_mode("model")
    return process.model, process.guide


def sparse_process():
    x, y = regression_data(0)
    kernel = gp.kernels.RBF(1)
    process = gp.models.VariationalSparseGP(x, y, kernel, Xu=x[::2].clone(), likelihood=gp.likelihoods.Gaussian())
    return process.model, process.guide


def deep_kernel():
    x, y = regression_data(0)
    kernel = gp.kernels.Warping(
        gp.kernels.RBF(2), iwarping_fn=nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2))
    )
    process = gp.models.SparseGPRegression(x[:, None], y, kernel, Xu=x[::2, None].clone())
    return process.model, process.guide


def another_data_set(model, step: int) -> None:
    process = model.__self__
    x, y = regression_data(step)
    process.set_data(x if process.X.dim() == 1 else x[:, None], y)


def eight_schools_model():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)).to_event(1))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)).to_event(1))
    tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)).to_event(1))
    pyro.sample("obs", dist.Normal(mu + tau * eta, sigma).to_event(1), obs=y)


class EightSchoolsGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.zeros(10))
        self.scale = PyroParam(torch.full((10,), 0.2), constraint=constraints.positive)

    def forward(self):
        eta = dist.Normal(self.loc[:8], self.scale[:8]).to_event(1)
        pyro.sample("eta", eta)
        pyro.sample("mu", dist.Normal(self.loc[8:9], self.scale[8:9]).to_event(1))
        tau = dist.TransformedDistribution(
            dist.Normal(self.loc[9:], self.scale[9:]), transforms=dist.transforms.ExpTransform()
        )
        pyro.sample("tau", tau.to_event(1))


class BayesianRegression(PyroModule):
    """As in the tutorial: priors over the weights of a linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


def automatic(kind: str, **options) -> Callable[[], tuple]:
    """The regression with an AutoGuide that has been called once, so that it has parameters."""

    def build():
        model = BayesianRegression()
        guide = getattr(autoguide, kind)(model, **options)
        with poutine.block():
            guide(*labelled(0))
        return model, guide

    return build


def labelled(step: int) -> tuple:
    x = torch.randn(6, 3, generator=seeded(step))
    return x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(6, generator=seeded(step + 100))


class ScoreFunction(PyroModule):
    """A guide whose choices are discrete, each with another kind of baseline."""

    def __init__(self, baseline=None):
        super().__init__()
        self.net = nn.Linear(4, 4)
        self.nn_baseline = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(0))
        if baseline != "nn":
            self.nn_baseline.requires_grad_(False)
        self.kind = baseline

    def forward(self, x):
        baseline = {
            None: {},
            "nn": {"nn_baseline": self.nn_baseline, "nn_baseline_input": x},
            "decaying": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9},
        }[self.kind]
        with pyro.plate("data", len(x)):
            rate, logits = self.net(x).split([1, 3], -1)
            pyro.sample("n", dist.Poisson(rate.squeeze(-1).exp()), infer={"baseline": baseline})
            pyro.sample("k", dist.Categorical(logits=logits), infer={"baseline": baseline})


def counting_model(x):
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Poisson(torch.tensor(2.0)))
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        loc = torch.stack([n, k.float(), n - k, n * 0.0], -1)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


class Crossed(nn.Module):
    """Ratings of films by users, of both a random part a step."""

    def __init__(self):
        super().__init__()
        self.user, self.film = nn.Parameter(torch.zeros(9, 2)), nn.Parameter(torch.zeros(7, 2))

    def model(self, ratings):
        pyro.module("crossed", self)
        users = pyro.plate("users", 9, subsample_size=4, dim=-1)
        films = pyro.plate("films", 7, subsample_size=3, dim=-2)
        with users as i:
            u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with films as j:
            f = pyro.sample("f", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with users, films:
            pyro.sample("r", dist.Normal((u * f).sum(-1), 0.5), obs=ratings[j][:, i])

    def guide(self, ratings):
        with pyro.plate("users", 9, subsample_size=4, dim=-1) as i:
            pyro.sample("u", dist.Normal(self.user[i], 0.3).to_event(1))
        with pyro.plate("films", 7, subsample_size=3, dim=-2) as j:
            pyro.sample("f", dist.Normal(self.film[j][:, None], 0.3).to_event(1))


def crossed():
    pair = Crossed()
    return pair.model, pair.guide


class FlowGuide(PyroModule):
    def __init__(self, transform):
        super().__init__()
        self.transform = transform
        self.base = PyroParam(torch.full((4,), 0.5), constraint=constraints.positive)

    def forward(self, x):
        flow = dist.TransformedDistribution(dist.Normal(torch.zeros(4), self.base).to_event(1), [self.transform])
        with pyro.plate("data", len(x)):
            pyro.sample("z", flow)


class Decoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 4)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


def flow(transform: Callable) -> Callable[[], tuple]:
    return lambda: (Decoder(), FlowGuide(transform()))


def one_by_one(x):
    """A plate in sequence."""
    for i in pyro.plate("rows", len(x)):
        pyro.sample(f"x_{i}", dist.Normal(pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0)), 1.0), obs=x[i, 0])


class OneByOne(PyroModule):
    def __init__(self):
        super().__init__()
        self.locs = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        for i in pyro.plate("rows", len(x)):
            pyro.sample(f"z_{i}", dist.Normal(self.locs[i], 0.5))


AUTOGUIDES = {
    "AutoDelta": {},
    "AutoNormal": {},
    "AutoDiagonalNormal": {},
    "AutoMultivariateNormal": {},
    "AutoLowRankMultivariateNormal": {},
    "AutoIAFNormal": {},
    "AutoLaplaceApproximation": {},
    "AutoGaussian": {},
    "AutoStructured": {"conditionals": "mvn"},
    "AutoNormalMessenger": {},
    "AutoHierarchicalNormalMessenger": {},
}
EXAMPLES = {
    "ss-vae, labels in every other step": Example(ss_vae, some_labels, TraceGraph_ELBO, 6),
    "ss-vae's classifier": Example(
        ss_vae_classifier, lambda step: (some_labels(step)[0], torch.eye(3)[[0, 1, 2, 0, 1, 2]]), Trace_ELBO, 6
    ),
    "cvae": Example(
        cvae,
        half_masked,
        Trace_ELBO,
        6,
        r"depends on the values of .*pyro_examples\.py, line \d+ \(\"mask_loc = ",
    ),
    "dmm, annealed by a tensor": Example(dmm, sequences, Trace_ELBO),
    "dmm, packed": Example(
        lambda: dmm(packed=True), sequences, Trace_ELBO, refused="the lengths of a packed sequence are read on the host"
    ),
    "sparse gamma def": Example(lambda: (SparseGammaDEF().model, SparseGammaGuide()), counts, TraceMeanField_ELBO, 5),
    "lda": Example(lambda: (lda_model, LDAGuide(LDA)), documents, Trace_ELBO),
    "gp, new data each step": Example(gaussian_process, loss=Trace_ELBO, before=another_data_set),
    "sparse gp, new data each step": Example(sparse_process, loss=TraceMeanField_ELBO, before=another_data_set),
    "deep kernel, new data each step": Example(deep_kernel, loss=Trace_ELBO, before=another_data_set),
    "eight schools": Example(lambda: (eight_schools_model, EightSchoolsGuide())),
    **{f"regression, {kind}": Example(automatic(kind, **o), labelled, Trace_ELBO, 6) for kind, o in AUTOGUIDES.items()},
    "score functions": Example(lambda: (counting_model, ScoreFunction()), rows, images=6),
    "score functions, neural baselines": Example(lambda: (counting_model, ScoreFunction("nn")), rows, images=6),
    "score functions, decaying averages": Example(
        lambda: (counting_model, ScoreFunction("decaying")),
        rows,
        images=6,
        refused=r'pyro\.param\("__baseline_avg_downstream_cost_n"\) is in Pyro\'s global parameter store',
    ),
    "two subsampled plates": Example(crossed, lambda step: (torch.randn(7, 9, generator=seeded(step)),)),
    "a plate in sequence": Example(lambda: (one_by_one, OneByOne()), rows),
    "spline flow": Example(
        flow(lambda: dist.transforms.spline_coupling(4, hidden_dims=(6,))),
        rows,
        images=6,
        refused=r"the shape of a result of aten::index.* depends on the values of .*\(\"pyro\.sample\(\"z\", flow\)",
    ),
    "inverse autoregressive flow": Example(
        flow(lambda: dist.transforms.affine_autoregressive(4, hidden_dims=[8])), rows, images=6
    ),
    "batch-normalised flow": Example(flow(lambda: dist.transforms.BatchNorm(4)), rows, images=6),
}
