import textwrap

from patchclamp.organisms.stdlib.labels import documents, labels

SOURCE = textwrap.dedent(
    '''
    @wraps
    def area(width, *sides):
        """Of all."""
        if width:  # wide
            return f(width)[sides[0]]
        for side in {1: "a"}:
            pass
    '''
)


def of(text, role):
    return [text[span.start : span.end] for span in labels(text) if span.role == role]


def test_roles_are_those_of_pythons_tokenizer():
    assert of(SOURCE, "keyword") == ["def", "if", "return", "for", "in", "pass"]
    assert of(SOURCE, "defined") == ["area"]
    assert of(SOURCE, "again") == ["width", "width", "sides"]
    assert of(SOURCE, "string") == ['"""Of all."""', '"a"']
    assert of(SOURCE, "comment") == ["# wide"]
    assert of(SOURCE, "number") == ["0", "1"]


def test_brackets_and_their_depths():
    assert of(SOURCE, "opening") == ["(", "(", "[", "[", "{"]
    assert of(SOURCE, "closing") == [")", ")", "]", "]", "}"]
    assert of(SOURCE, "inside:1") == ["width, *sides", "width", "sides[0]", '1: "a"']
    assert of(SOURCE, "inside:2") == ["0"]


def test_a_block_begins_deeper_where_nothing_is_between():
    """After `if width:` comes a comment, so that its line break is not what follows the colon."""
    assert of(SOURCE, "deeper") == ["\n    ", "\n        "]


def test_an_f_string_is_a_string():
    assert "string" in {span.role for span in labels('x = f"{y} z"\n')}


def test_documents_are_definitions_at_no_indentation():
    text = "class A:\n    @property\n    def b(self):\n        return 1\n\n\nasync def c():\n    pass\n"
    found = {(document.kind, document.text) for document in documents({"m.py": text})}
    assert found == {
        ("class", "class A:\n    @property\n    def b(self):\n        return 1\n"),
        ("method", "@property\ndef b(self):\n    return 1\n"),
        ("function", "async def c():\n    pass\n"),
    }
    assert not list(documents({"m.py": f"def f():\n    return '{'x' * 600}'\n"}))
    assert all(document.path == "m.py" for document in documents({"m.py": text}))
