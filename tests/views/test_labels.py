import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.views.labels import plotly_text, show_token


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Mary", "·Mary"),
        ("a b", "a b"),
        ("a  b", "a··b"),
        ("  ", "··"),
        ("\n", "↵"),
        ("\t", "⇥"),
        ("\r", "␍"),
        ("", '""'),
        ("\x1b[0m", "\\x1b[0m"),
        ("\u202e", "\\u202e"),
        ("\u00a0", "\\xa0"),
        ("·", "\\u00b7"),
        ("\u0301a", "◌\u0301a"),
        ("é", "é"),
        ("日本", "日本"),
    ],
)
def test_every_character_can_be_seen(token, shown):
    assert show_token(token) == shown


@given(st.text(alphabet=" \n\t·↵a\u200b", max_size=6), st.text(alphabet=" \n\t·↵a\u200b", max_size=6))
def test_different_tokens_look_different(one, other):
    assert (show_token(one) == show_token(other)) == (one == other)


@given(st.text(max_size=40), st.integers(2, 10))
def test_a_limit_is_kept(token, limit):
    assert len(show_token(token, limit)) <= limit


@given(st.text(max_size=40))
def test_plotly_reads_no_markup_and_no_formula(text):
    import html

    safe = plotly_text(text)
    assert not set("<>$") & set(safe)
    assert html.unescape(safe) == html.unescape(html.escape(text, quote=False))
