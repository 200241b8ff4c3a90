"""ITDA: growth row by row, provenance that leads back to the activation, the authors' files, comparisons of models."""

import pytest
import torch
import yaml

import patchclamp as pc
import tiny
from patchclamp import store
from patchclamp.dictionaries import ITDA, Dictionary, load, measures
from patchclamp.dictionaries.itda import (
    grow,
    jaccard,
    layer_matching,
    linear_cka,
    relative_similarity,
    similarity,
    svcca,
)
from patchclamp.dictionaries.pursuit import matching_pursuit
from patchclamp.organisms import planted

WORLD = planted.superposition(features=64, width=32, active=8)
ROWS = WORLD.sample(1500, seed=1).activations


@pytest.fixture(scope="module")
def atoms():
    return grow(ROWS, k=8, threshold=0.25, progress=False)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_by_one(rows, k, threshold):
    """The numbers of the rows that become atoms, by the definition."""
    kept, unit = [], torch.nn.functional.normalize(rows, dim=1)
    for number, row in enumerate(unit):
        if kept:
            found = matching_pursuit(row[None], unit[kept], min(k, len(kept)))
            explained = row - found.residual[0]
            missed = float(((row - explained / explained.norm()) ** 2).sum())
        if not kept or missed > threshold:
            kept.append(number)
    return kept


def test_rows_are_judged_one_after_the_other(atoms):
    expected = one_by_one(ROWS[:400].double(), 8, 0.25)
    found = grow(ROWS[:400].double(), k=8, threshold=0.25, progress=False)
    assert found.sources[:, 0].tolist() == expected
    # Nor does it matter that more follow.
    assert atoms.sources[: len(expected), 0].tolist() == expected


def test_atoms_are_the_activations_that_they_name(atoms):
    assert torch.allclose(atoms.W_dec, torch.nn.functional.normalize(ROWS[atoms.sources[:, 0]], dim=1))
    labels = torch.stack([torch.arange(1500) // 10, torch.arange(1500) % 10], 1)
    labelled = grow(ROWS, k=8, threshold=0.25, labels=labels, progress=False)
    by_document = grow(ROWS.reshape(150, 10, 32), k=8, threshold=0.25, progress=False)
    assert torch.equal(labelled.sources, labels[atoms.sources[:, 0]])
    assert torch.equal(by_document.sources, labelled.sources)


def test_a_cap_and_a_number_of_tokens_stop_it(atoms):
    capped = grow(ROWS, k=8, threshold=0.25, most=40, progress=False)
    assert capped.width == 40 and torch.equal(capped.W_dec, atoms.W_dec[:40])
    read = grow(ROWS, k=8, threshold=0.25, tokens=300, progress=False)
    assert torch.equal(read.sources, grow(ROWS[:300], k=8, threshold=0.25, progress=False).sources)


def test_duplicates_and_zeros_are_no_atoms():
    rows = torch.cat([torch.zeros(2, 4), torch.eye(4), 3 * torch.eye(4), -torch.eye(4)])
    found = grow(rows, k=2, threshold=0.1, progress=False)
    assert found.sources[:, 0].tolist() == [2, 3, 4, 5]


def test_it_explains_more_than_random_atoms(atoms):
    x = WORLD.sample(1000, seed=2).activations
    random = ITDA(torch.nn.functional.normalize(draw(atoms.width, 32).float(), dim=1), atoms.sources, 8)
    assert measures.fvu(x, atoms(x)) < measures.fvu(x, random(x)) - 0.03
    assert measures.report(atoms, x)["fvu"] < measures.report(atoms, x)["random"]["fvu"]


def test_a_stream_is_read_in_its_order(atoms):
    found = grow(WORLD, k=8, threshold=0.25, tokens=1500, seed=1, progress=False)
    assert torch.equal(found.sources, atoms.sources)


def test_from_a_store_each_atom_leads_back_to_its_token(tmp_path):
    model = pc.wrap(tiny.build("llama"), name="tiny")
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(3, 99, (20,), generator=generator).tolist() for _ in range(30)]
    rows = store.record(model, documents, "resid_post.1", tmp_path, dtype="float32", quiet=True)
    found = grow(rows["resid_post.1"], k=4, threshold=0.2, progress=False)
    assert 4 < found.width < rows.rows
    for atom, (document, position) in zip(found.W_dec, found.sources.tolist(), strict=True):
        ids = rows.document(document)[: position + 1]
        state = model.run(ids[None], record="resid_post.1")["resid_post.1"][0, -1]
        assert torch.allclose(atom, state / state.norm(), atol=1e-5)


def test_it_is_a_site_of_a_model():
    model = pc.wrap(tiny.build("llama"), name="tiny")
    run = model.run(torch.arange(3, 23)[None], record="resid_post.1")
    found = grow(run["resid_post.1"], k=4, threshold=0.2, progress=False)
    latents = found.as_site("resid_post.1")
    latent = int(latents.codes(run).indices[0, 5, 0])
    held = model.run(torch.arange(3, 23)[None], do=[latents.clamp(latent, 2.0, pos=5)], record="resid_post.1")
    before = latents.codes(run).dense()[0, 5, latent]
    moved = held["resid_post.1"][0, 5] - run["resid_post.1"][0, 5]
    assert torch.allclose(moved, (2.0 - before) * found.W_dec[latent], atol=1e-5)


def test_the_authors_files_are_read_and_written(atoms, tmp_path):
    x = WORLD.sample(100, seed=2).activations
    folder = atoms.save(tmp_path / "ours")
    assert sorted(path.name for path in folder.iterdir()) == ["atom_indices.pt", "atoms.pt", "metadata.yaml"]
    read = load(folder)
    assert isinstance(read, ITDA) and torch.equal(read.sources, atoms.sources) and read.k == 8
    assert torch.equal(read(x), atoms(x))
    # theirs: no k in an old file, half precision, norms of 1 to that precision
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    torch.save(atoms.W_dec.half(), theirs / "atoms.pt")
    torch.save(atoms.sources, theirs / "atom_indices.pt")
    (theirs / "metadata.yaml").write_text(yaml.safe_dump({"layer": 3, "loss_threshold": 0.01}))
    assert load(theirs).k == 40 and load(theirs).metadata["layer"] == 3
    with pytest.raises(ValueError, match="saelens has no dictionary with matching pursuit"):
        atoms.save(tmp_path, "saelens")


def test_values_are_theirs(atoms, tmp_path):
    """The values that the authors' encoder gives: dense pursuit, an atom that is taken again adding up."""
    x, values = ROWS[:50].clone(), torch.zeros(50, atoms.width)
    left, rows = x.clone(), torch.arange(50)
    for _ in range(8):
        products = left @ atoms.W_dec.T
        best = products.abs().argmax(1)
        values[rows, best] += products[rows, best]
        left = left - products[rows, best, None] * atoms.W_dec[best]
    assert torch.allclose(atoms.encode(x).dense(), values, atol=1e-5)


def test_a_rotated_model_keeps_the_same_tokens_and_a_stretched_one_does_not():
    rows = ROWS.double()
    rotation = torch.linalg.qr(draw(32, 32)).Q
    assert similarity(rows, rows @ rotation, k=8, threshold=0.25).jaccard == 1.0
    assert similarity(rows, rows @ torch.diag(torch.linspace(0.2, 3, 32).double()), k=8, threshold=0.25).jaccard < 0.9
    found = similarity(rows, draw(1500, 24, seed=3), k=8, threshold=0.25)
    assert found.jaccard < 0.5 and found.shuffled < 0.5
    with pytest.raises(ValueError, match="record both at the same tokens"):
        similarity(rows, rows[:-1])


def test_a_shuffled_order_compared_by_place_is_the_null():
    rows = ROWS.double()
    found = similarity(rows, rows, k=8, threshold=0.25)
    assert found.jaccard == 1.0 and 0 < found.shuffled < 0.5


def test_jaccard_counts_tokens():
    eye = torch.eye(4)
    sources = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    a, b = ITDA(eye[:3], sources[:3], 1), ITDA(eye[:3], sources[1:], 1)
    assert jaccard(a, b) == 0.5 and jaccard(a, a) == 1.0


def test_similarities_of_rotated_and_of_independent_rows():
    x = draw(300, 10)
    rotation = torch.linalg.qr(draw(10, 10, seed=1)).Q
    for measure in (linear_cka, svcca, relative_similarity):
        assert measure(x, 3 * x @ rotation) == pytest.approx(1.0)
        assert measure(x, draw(300, 10, seed=2)) < 0.4
    assert svcca(x, x @ draw(10, 10, seed=4)) == pytest.approx(1.0)  # any invertible map
    assert linear_cka(x, x @ draw(10, 10, seed=4)) < 0.99
    kernel = lambda z: (z - z.mean(0)) @ (z - z.mean(0)).T  # noqa: E731
    y = draw(300, 7, seed=5) + x[:, :7]
    expected = (kernel(x) * kernel(y)).sum() / (kernel(x).norm() * kernel(y).norm())
    assert linear_cka(x, y) == pytest.approx(float(expected))
    assert layer_matching(torch.tensor([[0.9, 0.1], [0.2, 0.1]])) == 0.5


def test_what_is_no_data_is_refused():
    with pytest.raises(ValueError, match="numbers that are not finite"):
        grow(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]), progress=False)
    with pytest.raises(ValueError, match="expected a threshold between 0 and 4"):
        grow(ROWS, threshold=0, progress=False)
    with pytest.raises(TypeError, match="data of type list"):
        grow([[1.0]], progress=False)
    with pytest.raises(ValueError, match="no row to make an atom of"):
        grow(torch.zeros(3, 4), progress=False)
    with pytest.raises(ValueError, match="one site of one model"):
        grow(planted.pair(), progress=False)
    with pytest.raises(ValueError, match="expected a document and a position"):
        ITDA(torch.eye(3), torch.zeros(2, 2), 1)
    tied = Dictionary(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3), select="topk", k=1)
    with pytest.raises(ValueError, match="ITDA has no dictionary with an encoder"):
        tied.save("nowhere-it-goes", "itda")
