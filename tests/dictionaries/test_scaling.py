"""Latent scaling: the closed form on planted latents, and crosscoders whose latents are known to be one model's."""

import pytest
import torch

from patchclamp.dictionaries import Dictionary, ReLU, Trainer
from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.scaling import beta, latent_scaling, norm_scores, together
from patchclamp.organisms import planted
from patchclamp.store import held


def true_crosscoder(world, shrunk: bool = False) -> Dictionary:
    """The planted features as a crosscoder; `shrunk` takes the weak ones out of the first model's decoder."""
    truth = world.truth()
    strengths = truth.strengths.clone()
    if shrunk:
        strengths[0, truth.labelled("weak")] = 0.0
    decoder = torch.cat([truth.directions[m] * strengths[m][:, None] for m in range(2)], 1)
    reader = torch.where((truth.strengths[1] > 0)[None], torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]]))
    encoder = torch.cat([truth.directions[m] * reader[m][:, None] for m in range(2)], 1)
    return Dictionary(
        encoder, torch.zeros(len(encoder)), decoder, torch.zeros(decoder.shape[1]), shape_in=(2, 64), shape_out=(2, 64)
    )


def test_beta_is_exact_on_orthogonal_latents_and_equals_least_squares():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.double))[0][:8] * 3
    values = torch.rand(200, 3, generator=generator, dtype=torch.double)
    indices = torch.rand(200, 8, generator=generator).topk(3).indices
    codes, true = Codes(indices, values, 8), torch.rand(8, generator=generator, dtype=torch.double)
    found = beta(codes, directions, (codes.dense() * true) @ directions)
    torch.testing.assert_close(found, true, rtol=0, atol=1e-12)
    y = torch.randn(200, 16, generator=generator, dtype=torch.double)
    for j in range(8):
        regressor = (codes.dense()[:, j, None] * directions[j]).flatten()[:, None]
        solved = torch.linalg.lstsq(regressor, y.flatten()[:, None]).solution
        torch.testing.assert_close(beta(codes, directions, y)[j], solved[0, 0])


def test_norm_scores_are_the_strengths():
    world = planted.pair()
    scores, truth = norm_scores(true_crosscoder(world)), world.truth()
    for label, score in (("shared", 0.5), ("weak", 0.825), ("A-only", 0.0), ("B-only", 1.0)):
        torch.testing.assert_close(
            scores[truth.labelled(label)], torch.tensor(score).expand(len(truth.labelled(label)))
        )
    with pytest.raises(ValueError, match="several models"):
        norm_scores(Dictionary(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4)))
    with pytest.raises(ValueError, match="two of the models"):
        norm_scores(true_crosscoder(world), base=1, tuned=1)


def test_a_decoder_that_was_shrunk_is_found_by_the_error_it_leaves():
    world = planted.pair()
    truth = world.truth()
    found = latent_scaling(true_crosscoder(world, shrunk=True), world.sample(4000, seed=1).activations)
    weak, own = truth.labelled("weak"), truth.labelled("B-only")
    assert set(found.claimed().tolist()) == {*weak, *own}
    assert found.specific().tolist() == own
    torch.testing.assert_close(found.nu_error[weak], torch.full((8,), 0.35, dtype=torch.double), rtol=0, atol=1e-5)
    assert float(found.nu_error[own].abs().max()) < 1e-5 and float(found.null_error.nan_to_num().abs().max()) < 0.05
    verdicts = found.verdicts()
    assert {verdicts[j] for j in weak} == {"shrunk"} and {verdicts[j] for j in own} == {"tuned"}
    assert {verdicts[j] for j in truth.labelled("A-only")} == {"base"}
    assert {verdicts[j] for j in truth.labelled("shared")} == {"shared"}


def test_a_concept_that_two_latents_share_is_found_by_the_reconstruction():
    """Decoupling: a shared concept as one latent of the tuned model alone and another of the base's alone."""
    direction = torch.eye(4)[0]
    x = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) * direction
    pair = torch.stack([x, x], 1)
    zero = torch.zeros(4)
    decoder = torch.stack([torch.cat([direction, zero]), torch.cat([zero, direction])])
    crosscoder = Dictionary(decoder, torch.zeros(2), decoder, torch.zeros(8), shape_in=(2, 4), shape_out=(2, 4))
    found = latent_scaling(crosscoder, pair)
    assert found.claimed().tolist() == [1] and found.specific().tolist() == []
    assert abs(float(found.nu_reconstruction[1]) - 1) < 1e-6 and abs(float(found.nu_error[1])) < 1e-6
    assert found.verdicts() == ["base", "decoupled"]


def test_in_pieces_from_pairs_or_from_a_stream_it_is_the_same():
    world = planted.pair()
    crosscoder, x = true_crosscoder(world), planted.pair().sample(2048, seed=0).activations
    whole = latent_scaling(crosscoder, x, batch=5000)
    pieces = latent_scaling(crosscoder, x, batch=100)
    torch.testing.assert_close(whole.nu_error, pieces.nu_error, rtol=1e-5, atol=1e-6, equal_nan=True)
    stream = latent_scaling(crosscoder, world, rows=2048)
    torch.testing.assert_close(whole.nu_error, stream.nu_error, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert int(stream.active.sum()) == int(whole.active.sum())
    with pytest.raises(ValueError, match="no end"):
        latent_scaling(crosscoder, world)


class Pairs:
    """Two sites in memory, in step."""

    def __init__(self, *tensors):
        self.members, self.rows, self.d = (
            [held(t) for t in tensors],
            len(tensors[0]),
            tuple(t.shape[1] for t in tensors),
        )

    def batches(self, size, *, seed=0, epoch=0, start=0):
        return zip(*(m.batches(size, seed=seed, epoch=epoch, start=start) for m in self.members), strict=True)


def test_paired_rows_stack():
    x = planted.pair().sample(100, seed=0).activations
    rows = together(Pairs(x[:, 0], x[:, 1]))
    batches = list(rows.batches(64))
    assert rows.rows == 100 and [tuple(b.shape) for b in batches] == [(64, 2, 64), (36, 2, 64)]
    pairs = {tuple(row.flatten().tolist()) for row in x}
    assert {tuple(row.flatten().tolist()) for row in torch.cat(batches)} == pairs
    with pytest.raises(ValueError, match="one width"):
        together(Pairs(x[:, 0], x[:, 1, :3]))


def test_a_crosscoders_penalty_pulls_each_models_row_by_as_much():
    """The gradient of f times the summed norms of the decoder rows: without it, weak shares shrink in proportion."""
    trainer = Trainer(ReLU(l1=1.0), d_in=(2, 4), width=6, steps=20)
    x = torch.randn(32, 2, 4, generator=torch.Generator().manual_seed(0))
    trainer.step(x)
    kept = {name: tensor.detach().clone().requires_grad_() for name, tensor in trainer.tensors.items()}
    rows = ((x.flatten(1) - trainer.centre_in) * trainer.scales[0]).detach()
    weight = trainer.taken / trainer.warmup
    trainer.step(x)
    gradients = []
    for norms in (kept["W_dec"].unflatten(1, (2, 4)).norm(dim=2).sum(1), 1.0):
        codes = torch.nn.functional.linear(rows, kept["W_enc"], kept["b_enc"]).relu()
        error = ((rows - codes @ kept["W_dec"] - kept["b_dec"]) ** 2).sum() / len(rows)
        loss = error + weight * (codes * norms).sum(-1).mean()
        variance = ((rows - rows.mean(0)) ** 2).sum() / len(rows)
        gradients.append(torch.autograd.grad(loss / variance, kept["W_dec"], retain_graph=True)[0])
    torch.testing.assert_close(trainer.tensors["W_dec"].grad, gradients[0])
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2)
