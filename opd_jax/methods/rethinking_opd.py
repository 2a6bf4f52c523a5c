"""Rethinking OPD, arXiv:2604.13016: a policy gradient for each of the student's likeliest tokens."""

import jax
import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import PerCandidate
from opd_jax.losses.supports import Support, best
from opd_jax.losses.terms import ClippedCandidates, ClippedRatio, DivergenceTerm, WeightedTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.types import ScoreRequest

VARIANTS = {
  'teacher weights': {'weight': 'teacher'},
  'no weights': {'weight': 'none'},
  'only teacher': {'of': 'teacher'},
  'intersection': {'of': 'both'},
  'union': {'of': 'either'},
  'clipped': {'clip': ClippedRatio(dual=3.0)},
}


def clipped(
  evidence: Evidence, clip: ClippedRatio, *, among_both: bool, weight: str
) -> WeightedTerm:
  """The same sum with weights, advantages and candidates of the student that was weighed, and a clip for each."""
  own, theirs = evidence.student.top_k, evidence.teacher.at_ids.logp
  kept = jnp.ones(own.ids.shape, bool)
  if among_both:
    kept = (own.ids[..., None] == evidence.teacher.top_k.ids[..., None, :]).any(axis=-1)
  side = {'student': own.logp, 'teacher': theirs}.get(weight)
  w = 1.0 if side is None else jax.nn.softmax(side, axis=-1, where=kept)
  return ClippedCandidates(clip=clip)(
    per_token(evidence.mask),
    ids=jnp.where(kept, own.ids, -1),
    advantages=w * (theirs - own.logp),
    behaviour_logps=own.logp,
  )


def rethinking_opd(
  *, k: int = 16, of: str = 'student', weight: str = 'student', clip: ClippedRatio | None = None
) -> Method:
  r"""Every one of a few candidates of a position has an advantage of its own, whether it was written or not.

      loss = -Σ_t Σ_{v ∈ S} w_v (log q(v) - log p(v)) ρ_v / tokens,      w = p / Σ_S p,      ρ_v = p(v) / sg p(v)

  arXiv:2604.13016, S the student's best k = 16. The weights are divided by the mass on S, the log-probabilities are
  not. As released, S, w and the advantages are those of the weighed student, and each candidate's ratio is clipped:
  `clipped`. Departs: without `clip` all are of the present student, so a ratio is 1; in the first update of a batch the
  gradient is the same.

  Args:
    k: candidates of either side.
    of: whose best: 'student', 'teacher', 'both' or 'either'.
    weight: w, of the 'student' or the 'teacher'; 'none' weighs all alike, by one.
    clip: of every candidate's ratio, for 'student' and 'both': the student is scored at its own best only.
  """
  support = Support(entries=best(k, of=of), rest=PerCandidate(weight=weight))
  term = DivergenceTerm(divergence=ReverseKL(), support=support)
  needs = required_by(term)
  if clip is not None:
    if of not in ('student', 'both'):
      raise ValueError(f"rethinking_opd: of must be 'student' or 'both' with a clip, got {of!r}.")
    theirs = ScoreRequest(at_student_top_k=k, top_k=k if of == 'both' else 0)
    needs = Requirements(student=ScoreRequest(top_k=k), teacher=theirs)

  def weigh(evidence: Evidence) -> WeightedTerms:
    if clip is None:
      return (term(per_token(evidence.mask)),)
    return (clipped(evidence, clip, among_both=of == 'both', weight=weight),)

  return Method(
    rollout=rollouts.student(),
    needs=needs,
    weigh=weigh,
    claim=Nothing('tokens that are no candidates are not compared'),
    paper='arXiv:2604.13016',
  )
