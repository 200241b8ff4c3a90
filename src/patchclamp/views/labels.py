"""Text that may hold anything, made visible and safe: tokens, titles and names on their way into a figure."""

import unicodedata

_VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", "·": "\\u00b7", "↵": "\\u21b5", "⇥": "\\u21e5", "␍": "\\u240d"}
_PLOTLY = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}  # its pseudo-HTML, and MathJax where a page has it


def show_token(token: str, limit: int | None = None) -> str:
    """A token with every character visible: `·` is a leading, trailing or doubled space, `↵` a newline, `⇥` a tab.

    Control, invisible, direction-changing and unassigned characters come out as escapes; so do the four signs above
    where they are in the token itself, so that two different tokens never look the same. A combining mark at the start
    gets a dotted circle to stand on. Longer than `limit` characters: cut, with an ellipsis.

    >>> show_token(" Mary"), show_token("a\\n"), show_token("·"), show_token("")
    ('·Mary', 'a↵', '\\\\u00b7', '""')
    """
    if token == "":
        return '""'
    shown = []
    for i, character in enumerate(token):
        if character == " ":
            inside = 0 < i < len(token) - 1 and token[i - 1] != " " and token[i + 1] != " "
            shown.append(" " if inside else "·")
        elif character in _VISIBLE:
            shown.append(_VISIBLE[character])
        elif unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}:
            shown.append(character.encode("unicode_escape").decode("ascii"))
        else:
            shown.append(character)
    if unicodedata.category(token[0]).startswith("M"):
        shown.insert(0, "◌")
    text = "".join(shown)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def plotly_text(text: str) -> str:
    """`text` so that plotly draws it as it stands: its pseudo-HTML tags and its TeX are not read.

    >>> plotly_text("<b> & $x$")
    '&lt;b&gt; &amp; &#36;x&#36;'
    """
    return "".join(_PLOTLY.get(character, character) for character in text)
