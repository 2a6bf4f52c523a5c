"""Floor 1. What the vocabulary pass reads besides the student's states and head, and whether it fits together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Bool, Int

from opd_jax.losses.terms import DivergenceTerm, WeightedTerm
from opd_jax.losses.vocab_shard import Target
from opd_jax.sharding import Layout
from opd_jax.types import AnyArray


class Reads(NamedTuple):
  """The response, what judges say, terms with their coefficients, and positions whose reading counts."""

  response: Int[AnyArray, 'B R']
  targets: Mapping[str, Target]
  terms: Sequence[WeightedTerm]
  counts: Bool[AnyArray, 'B R']


def check(hidden, head, reads: Reads, layout: Layout) -> None:
  """Refuses what does not fit together, by name."""
  for name, target in reads.targets.items():
    if (target.hidden is None) != (target.head is None):
      raise ValueError(
        f'vocabulary: the hidden states of the {name} and its head belong together; one of them is missing.'
      )
    if target.head is not None and target.head.shape[1] != head.shape[1]:
      raise ValueError(
        f'vocabulary: the student has {head.shape[1]} entries, the {name} {target.head.shape[1]}. Position by position '
        'they can only be compared over one vocabulary.'
      )
  for what, size, axis in (
    ('rows', hidden.shape[0], 'batch'),
    ('entries of the vocabulary', head.shape[1], 'vocab'),
  ):
    if size % layout.size(axis):
      raise ValueError(
        f'vocabulary: {size} {what} cannot be shared evenly by {layout.size(axis)} devices ({axis!r}).'
      )
  for term, _, _ in reads.terms:
    if isinstance(term, DivergenceTerm) and term.of not in reads.targets:
      raise ValueError(
        f'vocabulary: {term.name} compares with the {term.of}, and only {sorted(reads.targets)} are given.'
      )
  for what, array in _arrays(hidden, reads):
    if array.shape[:2] != reads.response.shape:
      raise ValueError(
        f'vocabulary: {what} are of shape {array.shape}, the response is of shape {reads.response.shape}.'
      )


def _arrays(hidden, reads: Reads) -> Iterator[tuple[str, Any]]:
  """Every array that belongs to a position, with its name."""
  yield 'the hidden states', hidden
  for name, target in reads.targets.items():
    if target.hidden is not None:
      yield f'the hidden states of the {name}', target.hidden
    for what, top in (('top k', target.top_k), ('log-probabilities at ids', target.at_ids)):
      if top is not None:
        yield f'the ids of the {what} of the {name}', top.ids
        yield f'the {what} of the {name}', top.logp
  for term, coefficient, inputs in reads.terms:
    yield f'the coefficient of {term.name}', coefficient
    for key, value in inputs.items():
      yield f'the input {key!r} of {term.name}', value
