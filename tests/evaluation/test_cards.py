"""Firings, explanations, judges and cards, on a text that is written so that each latent's rule is known."""

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp import store
from patchclamp.evaluation import TokenJudge, cards, detection, explain, firings, untrained
from patchclamp.evaluation.cards import logit_effects
from patchclamp.evaluation.explanations import auroc
from patchclamp.evaluation.firings import Firings

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "one", "dog", "ran", "to", "my", "red", "hat", "with", "big"]


def written(rules, documents: int = 300, length: int = 20) -> Firings:
    """Random words, and latents that fire where a rule of (words, i) says."""
    generator = np.random.default_rng(0)
    token = torch.tensor(generator.integers(len(WORDS), size=documents * length))
    document = torch.arange(documents).repeat_interleave(length)
    position = torch.arange(length).repeat(documents)
    rows = [
        torch.tensor([i for i in range(len(token)) if rule(token, i, int(position[i]), generator)], dtype=torch.long)
        for rule in rules
    ]
    start = torch.tensor([0, *np.cumsum([len(one) for one in rows])])
    labels = torch.tensor(generator.random((len(token), 2)) < 0.3)
    row = torch.cat(rows)
    return Firings(
        token, document, position, row, torch.ones(len(row)), start, lambda i: f" {WORDS[i]}", labels, ("a", "b")
    )


@pytest.fixture(scope="module")
def found():
    return written(
        [
            lambda token, i, at, g: int(token[i]) in (1, 8),
            lambda token, i, at, g: at > 0 and int(token[i - 1]) == 12,
            lambda token, i, at, g: at > 0 and int(token[i - 1]) == 0 and int(token[i]) in (1, 5),
            lambda token, i, at, g: at < 2,
            lambda token, i, at, g: g.random() < 0.1,
            lambda token, i, at, g: i < 3,
        ]
    )


@pytest.mark.parametrize(
    ("latent", "rule", "says"),
    [(0, "token", "' cat'"), (1, "previous token", "' red'"), (2, "bigram", "' the cat'"), (3, "position", "0, 1")],
)
def test_each_rule_is_found_and_scores_one(found, latent, rule, says):
    explanation = explain(found, latent)
    assert explanation.rule == rule and says in explanation.says
    assert explanation.score > 0.97 and abs(explanation.null - 0.5) < 0.15


def test_what_fires_at_random_is_not_explained_on_documents_not_learned_from(found):
    scores = [explain(found, 4, seed=seed).score for seed in range(5)]
    assert abs(np.mean(scores) - 0.5) < 0.08


def test_a_label_is_a_rule(found):
    from dataclasses import replace

    rows = found.labels[:, 1].nonzero().flatten()
    other = replace(found, row=rows, value=torch.ones(len(rows)), start=torch.tensor([0, len(rows)]))
    assert explain(other, 0).rule == "label" and "b holds" in explain(other, 0).says and explain(other, 0).score == 1.0


def test_what_is_too_rare_is_not_scored(found):
    explanation = explain(found, 5)
    assert explanation.score is None and not explanation.known and "too rare" in explanation.says


def test_auroc_counts_ties_half():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    said, true = torch.randint(0, 5, (200,), generator=generator), torch.rand(200, generator=generator) < 0.4
    assert auroc(said.float(), true) == pytest.approx(roc_auc_score(true, said))


def test_a_judge_sees_no_values_and_is_asked_about_fourteen_contexts(found):
    seen = {}

    class Honest(TokenJudge):
        def explain(self, examples):
            seen["examples"] = examples
            return super().explain(examples)

        def detect(self, explanation, contexts):
            seen["contexts"] = contexts
            return super().detect(explanation, contexts)

    result = detection(found, 0, Honest())
    assert len(seen["examples"]) == 15 and len(seen["contexts"]) == 14
    assert all(context.active for context in seen["examples"])
    assert not any(context.active for context in seen["contexts"])
    assert result.accuracy == 1.0 and '" cat"' in result.explanation


def test_random_contexts_in_which_a_dense_latent_fires_count_as_active(found):
    """Latent 0 fires on two words of sixteen: of thirteen words about half have one, drawn at random or not."""

    class Always(TokenJudge):
        def detect(self, explanation, contexts):
            return [True] * len(contexts)

    result = detection(found, 0, Always())
    assert result.accuracy > 4 / 14 + 0.05 and result.none == pytest.approx(1 - result.accuracy)


def test_a_judge_who_does_not_answer_everything_is_refused(found):
    class Short(TokenJudge):
        def detect(self, explanation, contexts):
            return [True]

    with pytest.raises(ValueError, match="answered 1"):
        detection(found, 0, Short())


def test_contexts_end_with_their_document(found):
    context = found.context(20, 0)
    assert context.at == 0 and len(context.tokens) == 5
    with pytest.raises(IndexError, match="of a dictionary of 6"):
        found.of(6)


@pytest.fixture(scope="module")
def dictionary(tales, documents):
    x = tales.run([d.text for d in documents], record="resid_post.1")["resid_post.1"].flatten(0, 1)
    return untrained(pc.dictionaries.TopK(k=4), x, width=64)


def test_firings_are_the_dictionarys_own_codes(tales, documents, dictionary):
    mine = firings(dictionary, tales, documents[:10], site="resid_post.1", batch=3)
    row = 37
    document, position = int(mine.document[row]), int(mine.position[row])
    run = tales.run(documents[document].text, record="resid_post.1")
    codes = dictionary.encode(run["resid_post.1"][0, position]).dense()
    assert torch.allclose(torch.stack([mine.values(j)[row] for j in range(64)]), codes, atol=1e-4)
    assert int(run.tokens.ids[0, position]) == int(mine.token[row])
    with pytest.raises(ValueError, match="site="):
        firings(dictionary, tales, documents[:2])


def test_cards_of_texts_and_of_a_store(tales, documents, dictionary, tmp_path):
    texts = [document.text for document in documents]
    deck = cards(dictionary, tales, documents, site="resid_post.1", latents=[3, 9], judge=TokenJudge())
    assert [card.latent for card in deck] == [3, 9] and deck.rows()[0]["latent"] == 3
    card = deck[0]
    assert card.examples["top"][0].values[card.examples["top"][0].at] == pytest.approx(card.largest)
    assert len(card.neighbours) == 5 and card.neighbours[0][0] != 3
    page = deck.save(tmp_path / "cards.html").read_text()
    assert "Latent 9" in page and "http-equiv" in page and "⟨" in page
    assert "<table" in deck._repr_html_() and len(deck.plot().data) == 1
    acts = store.record(tales, texts, ["resid_post.1"], tmp_path / "acts", dtype="float32", skip_first=1)
    again = cards(dictionary, tales, acts["resid_post.1"], latents=[3, 9])
    assert again[0].density == card.density and again[0].largest == pytest.approx(card.largest, abs=1e-4)


def test_logit_effects_are_the_models_own(tales, dictionary):
    """At a fixed scale of the last norm, adding the decoder row moves the logits by the effects, up to a constant."""
    raises, lowers = logit_effects(dictionary, tales, 5, count=2226)
    run = tales.run("The cat", record="final_norm_scale")
    scale = float(run["final_norm_scale"][0, -1])
    small = 1e-2
    moved = tales.run("The cat", do=[pc.add("resid_post.3", dictionary.W_dec[5], scale=small, pos=-1)])
    difference = (moved.logits - run.logits)[0, -1].double() / small * scale
    # What is left is that the norm's scale moves too, along the clean logits.
    clean = run.logits[0, -1].double() - run.logits[0, -1].double().mean()
    difference = difference - difference.mean()
    words = [tales.tokenizer.tokenize(token)[0] for token, _ in raises[:20]]
    ids = torch.tensor(tales.tokenizer.convert_tokens_to_ids(words))
    assert raises[0][1] > 0 > lowers[0][1]
    effects = torch.tensor([value for _, value in raises[:20]], dtype=torch.float64)
    design = torch.stack([clean[ids], torch.ones(len(ids))], 1).double()
    rest = difference[ids] - effects
    left = rest - design @ torch.linalg.lstsq(design, rest[:, None]).solution.squeeze(1)
    assert left.abs().max() < 0.1 * effects.std() + 0.05
