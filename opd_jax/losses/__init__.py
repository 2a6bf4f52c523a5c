"""Floor 1. Mathematics: pure functions of arrays. Only `vocabulary.py` walks over the vocabulary of a batch."""
