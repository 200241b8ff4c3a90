import json

import numpy as np
import pytest

from evaluation.worlds import changed, features, tree, truth
from patchclamp.dictionaries import measures
from patchclamp.dictionaries.measures import random_dictionary
from patchclamp.evaluation import Scores, evaluate
from patchclamp.evaluation.scores import Estimate


@pytest.fixture(scope="module")
def scores():
    data = tree(2500).only(range(8))
    return evaluate(truth(data), data, measures=["core", "truth", "probing", "hierarchy", "tpp"], seeds=(0, 1))


def test_every_score_stands_beside_its_baselines_with_an_interval(scores):
    for score in scores:
        assert set(score.baselines) == {"random", "PCA", "units"}
        low, high = score.interval
        assert low <= score.value <= high
    assert scores["accuracy@1"].value > scores["accuracy@1"].baselines["random"].value
    assert scores["directions found"].value == 1.0 and scores["firing F1"].value == pytest.approx(1.0)
    assert scores["silent parents"].value == 0.0 and scores["silent parents"].better == "lower"


def test_scores_are_written_and_read(scores, tmp_path):
    path = scores.save(tmp_path / "scores.json")
    assert json.loads(path.read_text())["facts"]["concepts"] == 8
    assert Scores.load(path) == scores
    assert "accuracy@1" in scores._repr_html_() and len(scores.rows()) == len(scores)
    assert len(scores.plot("units").data) >= 2
    with pytest.raises(KeyError, match="did you mean 'accuracy@1'"):
        scores["acuracy@1"]


def test_the_variance_explained_is_about_the_mean():
    """A large constant offset explains nothing: not E[x^2] in the place of E[x]^2, not a mean of means."""
    data = features(500)
    x = data.x + 100.0
    explained = x + 0.1
    from sklearn.metrics import r2_score

    peer = 1 - r2_score(x.numpy(), explained.numpy(), multioutput="variance_weighted")
    assert measures.fvu(x, explained) == pytest.approx(peer, rel=1e-3)


def test_what_the_data_do_not_allow_is_left_out_or_refused():
    data = features(400)
    one = truth(data)
    with pytest.raises(ValueError, match="'recovered' needs model="):
        evaluate(one, data, measures=["recovered"])
    with pytest.raises(ValueError, match="did you mean 'probing'"):
        evaluate(one, data, measures=["probbing"])
    with pytest.raises(ValueError, match="parents and children"):
        evaluate(one, data, measures=["hierarchy"])


def test_all_measures_of_a_dictionary_and_of_its_shuffled_and_rescaled_twin_agree():
    data = features(1200)
    one = random_dictionary(truth(data))
    several = evaluate(one, data, baselines={}), evaluate(changed(one, order=[4, 2, 5, 0, 1, 3]), data, baselines={})
    assert [score.measure for score in several[0]] == [score.measure for score in several[1]]
    assert {"fvu", "firing F1", "scr@1", "ravel score", "forgotten", "full absorption"} <= {
        score.measure for score in several[0]
    }
    for mine, theirs in zip(*several, strict=True):
        if mine.value is not None:
            assert mine.value == pytest.approx(theirs.value, abs=1e-6), mine.measure


def test_the_model_is_asked_where_it_is_given(tales, documents):
    from patchclamp.evaluation import Labelled, identity

    data = Labelled.of_text(tales, "resid_post.1", documents, ["letter:s", "letter:t"])
    assert data.names == ("letter:s", "letter:t") and data.groups is not None
    texts = [document.text for document in documents[:8]]
    found = evaluate(
        identity(96), data, measures=["recovered"], model=tales, site="resid_post.1", texts=texts, baselines=["random"]
    )
    assert found["loss recovered (zero)"].value == 1.0
    assert found["KL recovered (zero)"].baselines["random"].value < 0.99
    with pytest.raises(ValueError, match="no label that begins with"):
        Labelled.of_text(tales, "resid_post.1", documents[:3], "letter:z")


def test_estimates_leave_out_what_was_not_defined():
    assert Estimate.of([np.array([np.nan])]) == Estimate(None, None)
    assert Estimate.of([np.array([0.5])]) == Estimate(0.5, (0.5, 0.5))
    found = Estimate.of([np.array([0.0, 1.0, np.nan]), np.array([1.0, 1.0])])
    assert found.value == 0.75 and found.interval[0] < 0.75 < found.interval[1] + 1e-9
