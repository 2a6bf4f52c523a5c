"""Which loss on a top k is safe, arXiv:2605.11182: three that are, and the plain sum that is not."""

from opd_jax import rollouts
from opd_jax.claims import Claim, Nothing, Unbiased
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.rest_rules import Renormalised, RestRule, Stopped, Tail, Unclosed
from opd_jax.losses.supports import Support, best
from opd_jax.losses.terms import DivergenceTerm, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by

VARIANTS = {
  'sampled': {'rest': None},
  'student': {'of': 'student'},
  'stopped': {'of': 'student', 'rest': Stopped()},
  'tail': {'of': 'student', 'rest': Tail()},
  'raw': {'of': 'student', 'rest': Unclosed()},
}


def _claim(rest: RestRule | None) -> Claim:
  if rest is None:
    return Unbiased(divergence=ReverseKL())
  if rest == Unclosed():
    return Nothing(
      'a known mistake: it also lowers the kept mass, and a token rises only if q > e p'
    )
  return Nothing('entries outside the support are not compared')


def safe_top_k(*, k: int = 20, of: str = 'both', rest: RestRule | None = Renormalised()) -> Method:
  r"""Reverse KL on a few entries, closed such that the gradient of their mass does not enter.

      renormalised  KL(p / Σ_S p ‖ q / Σ_S q)        sampled  -(log q - log p)(y_t) log p(y_t)
      stopped      -Σ_S p sg[log q - log p]          tail     Σ_S p log(p / q) + p' log(p' / q'), p' = 1 - Σ_S p

  arXiv:2605.11182, S what student and teacher both have among their best k = 20, the mean over each response's tokens.
  The paper stops the gradient and renormalises: the gradient of the first form. The variant `raw`, Σ_S p log(p / q)
  differentiated as it stands, adds the gradient of Σ_S p; in the paper it lengthens responses and then collapses.

  Args:
    k: entries of either side.
    of: whose best: 'student', 'teacher', 'both' or 'either'. The paper intersects because its server scores one list of
      ids for all positions; here the student's own best can be asked for.
    rest: how the support is closed; None takes the written token instead of a support.
  """
  if rest is None:
    return _method(Requirements(), lambda evidence: _sampled(evidence), _claim(rest))
  term = DivergenceTerm(divergence=ReverseKL(), support=Support(entries=best(k, of=of), rest=rest))
  return _method(
    required_by(term), lambda evidence: (term(per_sequence(evidence.mask)),), _claim(rest)
  )


def _sampled(evidence: Evidence) -> WeightedTerms:
  gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
  return (PolicyGradient()(per_sequence(evidence.mask) * gap),)


def _method(needs: Requirements, weigh, claim: Claim) -> Method:
  return Method(
    rollout=rollouts.student(), needs=needs, weigh=weigh, claim=claim, paper='arXiv:2605.11182'
  )
