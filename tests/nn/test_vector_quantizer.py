"""The codebook against formulas written out."""

import pytest
import torch

from pplmodels.nn.vector_quantizer import Codebook, straight_through


def test_straight_through_has_one_value_and_the_others_gradient(float64):
    z, e = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    through = straight_through(z, e)
    assert torch.equal(through, e)
    weight = torch.randn(3, 4)
    to_z, to_e = torch.autograd.grad((through.square() * weight).sum(), [z, e], allow_unused=True)
    assert torch.equal(to_z, 2 * e * weight) and to_e is None


def test_the_nearest_code_is_that_of_brute_force(float64):
    book, z = Codebook(7, 3), torch.randn(5, 3, 2, 4)
    torch.nn.init.normal_(book.vectors)
    codes = book.nearest(z)
    assert codes.shape == (5, 2, 4)
    for b in range(5):
        for i in range(2):
            for j in range(4):
                distances = [float((z[b, :, i, j] - vector).square().sum()) for vector in book.vectors.detach()]
                assert codes[b, i, j] == distances.index(min(distances))
    assert torch.equal(book.embed(codes)[1, :, 1, 2], book.vectors[codes[1, 1, 2]])


def test_running_means_are_the_hand_formula(float64):
    """Appendix A.1: N <- decay N + (1 - decay) n, m <- decay m + (1 - decay) sum z, e = m / N."""
    book = Codebook(3, 2, decay=0.9)
    counts, sums = [1.0] * 3, [vector.clone() for vector in book.vectors.detach()]
    for _ in range(4):
        z = torch.randn(6, 2, 1, 1)
        codes = book.nearest(z)
        book.update_ema(z, codes)
        for k in range(3):
            chosen = z[codes.flatten() == k].flatten(1)
            counts[k] = 0.9 * counts[k] + 0.1 * len(chosen)
            sums[k] = 0.9 * sums[k] + 0.1 * chosen.sum(0)
    expected = torch.stack([m / n for m, n in zip(sums, counts, strict=True)])
    torch.testing.assert_close(book.vectors, expected, rtol=1e-4, atol=1e-6)  # but for the counts' smoothing


def test_without_memory_one_step_is_one_of_k_means(float64):
    book, z = Codebook(2, 2, decay=0.0), torch.randn(50, 2, 1, 1)
    book.init_from(z)
    codes = book.nearest(z)
    book.update_ema(z, codes)
    for k in range(2):
        mean = z[codes.flatten() == k].flatten(1).mean(0)
        torch.testing.assert_close(book.vectors[k], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_code_that_is_idle_for_long_is_revived_and_the_others_stay(decay):
    book, z = Codebook(4, 2, decay=decay, patience=3), torch.randn(30, 2, 1, 1)
    book.init_from(z)
    patient = Codebook(4, 2, decay=decay, patience=100)
    patient.load_state_dict(book.state_dict())
    codes = torch.arange(30).view(30, 1, 1) % 3  # the last one is not used
    for _ in range(2):
        book.update_ema(z, codes)
        patient.update_ema(z, codes)
    assert torch.equal(book.vectors, patient.vectors)
    z = torch.randn(30, 2, 1, 1)
    book.update_ema(z, codes)
    patient.update_ema(z, codes)
    assert torch.equal(book.vectors[:3], patient.vectors[:3])
    here = [(z.flatten(1) == vectors[3]).all(1).any() for vectors in (book.vectors, patient.vectors)]
    assert here == [True, False]
    assert book.steps_unused.tolist() == [0, 0, 0, 0] and patient.steps_unused.tolist() == [0, 0, 0, 3]


def test_one_code_is_the_only_code():
    book = Codebook(1, 3)
    assert (book.nearest(torch.randn(2, 3, 4, 4)) == 0).all()


def test_as_many_codes_as_vectors_quantise_without_error(float64):
    book, z = Codebook(8, 3), torch.randn(2, 3, 2, 2)
    book.init_from(z)
    torch.testing.assert_close(book.embed(book.nearest(z)), z)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_an_empty_codebook_is_refused(sizes):
    with pytest.raises(ValueError, match="needs at least one vector and one dimension"):
        Codebook(*sizes)
