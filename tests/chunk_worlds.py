"""The batch of `evidence_worlds` as a teacher with another tokenizer judges it: chunks of several tokens, and holes."""

from collections.abc import Iterator

import evidence_worlds as worlds
import jax.numpy as jnp
import numpy as np

from opd_jax.losses.vocab_shard import Target
from opd_jax.method import Evidence, Method, targets_of

# One row a kind: single tokens, pairs, a run of three, a token of no chunk, and a chunk that begins in a prefix.
CHUNKS = np.array(
  [
    [0, 1, 1, 2, 2, 2],
    [0, -1, -1, -1, -1, -1],
    [-1, -1, -1, -1, -1, -1],
    [0, 0, 0, 1, -1, -1],
    [0, 0, -1, 1, 2, 3],
    [0, 1, 2, -1, -1, -1],
    [0, 0, 1, 1, 2, -1],
    [0, 0, -1, -1, -1, -1],
  ]
)


def members() -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Where the tokens of every chunk stand that count."""
  for row, chunks in enumerate(CHUNKS):
    for chunk in range(chunks.max() + 1):
      where = np.flatnonzero((chunks == chunk) & worlds.MASK[row])
      if len(where):
        yield np.full(len(where), row), where


def with_chunks(
  method: Method, *, student=worlds.STUDENT_LOGITS
) -> tuple[Evidence, dict[str, Target]]:
  """Evidence of a method, and the targets of its judges."""
  evidence, _ = worlds.from_logits(
    student, worlds.TEACHER_LOGITS, worlds.REFERENCE_LOGITS, worlds.RESPONSE, method
  )
  teacher = evidence.scores['teacher']
  scores = {
    **evidence.scores,
    'teacher': teacher._replace(chunk=jnp.asarray(CHUNKS), known=jnp.asarray(CHUNKS >= 0)),
  }
  evidence = Evidence.of(
    evidence.rollout, scores, method.needs, step=evidence.step, key=evidence.key
  )
  return evidence, targets_of(evidence, {})
