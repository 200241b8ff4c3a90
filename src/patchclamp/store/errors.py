"""What can be wrong with a store; each message says what was found, what was expected, and what to do."""


class StoreError(RuntimeError):
    """A store that cannot be written or read as asked; the base of the others."""


class Mismatch(StoreError):
    """A store holds the activations of something else: another model, tokenizer, corpus, set of sites, or dtype."""


class Unfinished(StoreError):
    """A store whose recording was interrupted; the same call of `record` goes on with it."""


class Damaged(StoreError):
    """A file of a store is missing, has another size than was written, or other bytes."""
