"""Floor 1. Tiny worlds: verifiable tasks whose teachers are trained here, on two cores, in minutes. A file is a world.

All are deterministic: problem number i is the same for everybody, and a held-out problem is never in the other split.
(A further world, *bigram*, is a table of probabilities: `certify/bigram.py`.)
"""
