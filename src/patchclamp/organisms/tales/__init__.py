"""The `tales` family: language models trained on one generated world. See docs/tales.md."""
