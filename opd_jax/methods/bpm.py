"""BPM, byte-prefix marginalisation, arXiv:2607.22334: a teacher's distribution over the tokens of the student."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses.divergences import Divergence, ForwardKL, JensenShannon, SkewReverse
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'jensen_shannon': {'divergence': JensenShannon()},
  'skew_reverse': {'divergence': SkewReverse(alpha=0.1)},
}


def bpm(*, k: int = 64, divergence: Divergence = ForwardKL(), skip: tuple[int, ...] = ()) -> Method:
  r"""The teacher's next token, given to the student's longest token that it begins with, is imitated with its rest.

      loss = Σ_t D(p̃_t, q̃_t) / Z,      q̃(u) = Σ { q(w) : u the longest token of the student that w begins with }

  arXiv:2607.22334. Inside a token of the teacher w must begin with what is written of it, and q is divided by the mass
  of these; a token of the student that goes on behind the teacher's has its own probability (`inference.foreign`).
  p̃ and q̃ hold the same entries, and all else as one more. Z are all tokens of the batch, masked ones included. With
  one tokenizer q̃ is q. Departs: the best k entries are explicit, where the paper takes all that hold mass; no second
  term at the end of a response (its mass is an entry like others). Where many of the student's tokens go on behind the
  teacher's, their first pieces become the target: the paper finds one in two hundred, more lead the student astray.

  Args:
    k: entries.
    divergence: D; forward KL is the paper's best, `SkewReverse(0.1)` and a Jensen-Shannon its others.
    skip: tokens of the student that are not compared; the paper leaves blanks out, which it finds necessary for code.
  """
  term = DivergenceTerm(divergence=divergence, support=Support(entries=TeacherTopK(k), rest=Tail()))

  def weigh(evidence: Evidence) -> WeightedTerms:
    written = jnp.asarray(evidence.rollout.response)
    left_out = (
      jnp.isin(written, jnp.array(skip, jnp.int32)) if skip else jnp.zeros(written.shape, bool)
    )
    return (term(per_token(evidence.rollout.mask) * (evidence.mask & ~left_out)),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=Nothing(f"entries beyond the teacher's best {k} are compared as one"),
    paper='arXiv:2607.22334',
  )
