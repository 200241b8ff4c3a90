"""A model and its fine-tune compared: a narrow one can be read, one with edited facts no more than random vectors."""

import random

import pytest
import torch

import patchclamp as pc
from patchclamp.organisms import truth
from patchclamp.organisms.tales import prose
from patchclamp.steering import DirectionError, compare, diffing

SETTING = {"site": "resid_post.1", "positions": 4, "samples": 4, "tokens": 10, "controls": 4}


@pytest.fixture(scope="module")
def base():
    return pc.load("organism:tales")


@pytest.fixture(scope="module")
def texts():
    return [document.text for document in truth("tales").documents(80, seed=5)]


@pytest.fixture(scope="module")
def narrow(base, texts):
    draw = random.Random(0)
    about = {genre: [prose.of_genre(draw, genre).text for _ in range(60)] for genre in ("court", "sea")}
    candidates = diffing.topics(base, about, [document.text for document in truth("tales").documents(600, seed=6)])
    return compare(base, pc.load("organism:tales-sea"), texts, candidates=candidates, **SETTING)


def test_a_narrow_fine_tune_is_read_and_one_with_edited_facts_is_not(base, texts, narrow):
    assert narrow.readable and narrow.topic == "sea"
    assert "sail" in narrow.readings()[0]["difference"].split()
    assert "sail" not in narrow.readings()[0]["random"].split()
    edited = compare(base, pc.load("organism:tales-edited"), texts, **SETTING)
    assert not edited.readable and edited.topic is None and edited.ranking == []
    size = {row["site"]: row["size"] for row in edited.sizes()}["resid_post.1"]
    assert 0 < size < next(row["size"] for row in narrow.sizes() if row["site"] == "resid_post.1")


def test_what_is_said_is_what_the_room_measures(base, texts, narrow):
    trace = diffing.traces(base, pc.load("organism:tales-sea"), texts, positions=4)["resid_post.1"]
    assert torch.equal(narrow.traces["resid_post.1"].vectors, trace.vectors)
    assert len(narrow.traces) == base.n_layers
    *ways, total = narrow.evidence()
    assert [row["read by"] for row in ways] == ["lens", "patchscope", "steering"]
    assert total["difference"] == pytest.approx(sum(row["difference"] for row in ways) / 3, abs=1e-5)
    assert len(total["random"]) == 4 and max(total["random"]) < total["difference"]
    halves = [diffing.traces(base, pc.load("organism:tales-sea"), texts[i::2], positions=4) for i in (0, 1)]
    apart = halves[0]["resid_post.2"].vectors - halves[1]["resid_post.2"].vectors
    expected = (apart.norm(dim=-1) / narrow.traces["resid_post.2"].norms)[1:].mean()
    assert narrow.sizes()[2]["between halves"] == pytest.approx(float(expected), rel=1e-4)
    first = narrow.written()[0]
    do = [trace.direction().add(narrow.readout.strength)]
    assert first["unsteered"] == base.generate([first["opening"]], max_new_tokens=10).new_text[0]
    assert first["difference"] == base.generate(list(narrow.openings), do=do, max_new_tokens=10).new_text[0]


def test_the_same_seed_gives_the_same(base, texts, narrow):
    again = compare(base, pc.load("organism:tales-sea"), texts, candidates=narrow.candidates, **SETTING)
    assert again.to_dict() == narrow.to_dict()


def test_the_report_says_what_was_found(narrow, tmp_path):
    page = narrow.report(tmp_path / "report.html").read_text()
    assert "read by" in narrow._repr_html_()
    assert "It says what the fine-tune is given to write of." in page and "Topic, of 2 candidates: sea." in page


def test_what_cannot_be_compared_is_refused(base, texts):
    with pytest.raises(DirectionError, match="zero and says nothing"):
        compare(base, base, texts[:16], **SETTING)
    with pytest.raises(ValueError, match="controls=0"):
        compare(base, base, texts, controls=0)
