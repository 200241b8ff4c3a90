"""What is true of every character of Python source, by Python's own tokenizer: `spans = labels(text)`.

Roles: `keyword`, `name`, `number`, `string`, `comment`, `operator`; `opening` and `closing` brackets; `inside:N`, the
text between brackets that N open pairs enclose; `again`, a name that the text had before; `defined`, the name after
`def` or `class`; `deeper`, the line break and indentation that begin the block after a ":".
"""

import ast
import io
import keyword
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from patchclamp.tasks.example import Span

LONGEST = 600  # characters: a document fits the window that the network was trained on


@dataclass(frozen=True)
class Document:
    """One definition in a file: its source, what it is (`function`, `method` or `class`), its labels, its file."""

    text: str
    kind: str
    spans: tuple[Span, ...]
    path: str


KINDS = ("function", "method", "class")


def documents(texts: Mapping[str, str]) -> Iterator[Document]:
    """Every definition of at most 600 characters in the files, in their order, at no indentation."""
    for path, text in texts.items():
        lines = text.splitlines(keepends=True)
        for kind, node in _definitions(ast.parse(text)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            source = textwrap.dedent("".join(lines[first - 1 : node.end_lineno]))
            if len(source) <= LONGEST:
                yield Document(source, kind, labels(source), path)


def _definitions(module: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "function", node
        elif isinstance(node, ast.ClassDef):
            yield "class", node
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield "method", inner


def labels(text: str) -> tuple[Span, ...]:
    """The labels of Python source, in order of appearance; tokenize.TokenError or SyntaxError if it is none."""
    starts = [0]
    for line in io.StringIO(text, newline=""):
        starts.append(starts[-1] + len(line))

    def at(position: tuple[int, int]) -> int:
        return starts[position[0] - 1] + position[1]

    spans: list[Span] = []
    seen: set[str] = set()
    opened: list[int] = []
    tokens = list(tokenize.generate_tokens(io.StringIO(text, newline="").readline))
    solid = [t for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL)]
    header = {
        after.start: before.end
        for before, new_line, after in zip(solid, solid[1:], solid[2:], strict=False)
        if before.string == ":" and new_line.type == tokenize.NEWLINE and after.type == tokenize.INDENT
    }
    before = ""
    for token in tokens:
        start, end = at(token.start), at(token.end)
        if token.type == tokenize.INDENT and token.start in header:
            colon = at(header[token.start])
            if text[colon:end].strip() == "":  # no comment between the two
                spans.append(Span("deeper", colon, end))
        role = _role(token)
        if role is None:
            continue
        spans.append(Span(role, start, end))
        if role == "name":
            if token.string in seen:
                spans.append(Span("again", start, end))
            if before in ("def", "class"):
                spans.append(Span("defined", start, end))
            seen.add(token.string)
        if token.string in ("(", "[", "{"):
            spans.append(Span("opening", start, end))
            opened.append(end)
        elif token.string in (")", "]", "}") and opened:
            spans.append(Span("closing", start, end))
            inside = opened.pop()
            if inside < start:
                spans.append(Span(f"inside:{len(opened) + 1}", inside, start))
        before = token.string
    return tuple(sorted(spans, key=lambda span: (span.start, span.end)))


def _role(token: tokenize.TokenInfo) -> str | None:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    plain = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.OP: "operator"}
    if token.type in plain:
        return plain[token.type]
    # From Python 3.12 on, an f-string comes in parts.
    return "string" if tokenize.tok_name[token.type].startswith(("FSTRING", "TSTRING")) else None
