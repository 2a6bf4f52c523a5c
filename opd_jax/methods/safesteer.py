"""SafeSteer, arXiv:2606.02530: a steered teacher is followed on a few columns of the vocabulary only."""

from opd_jax import rollouts
from opd_jax.claims import Claim, Nothing, Unbiased
from opd_jax.losses.divergences import Divergence, ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.rest_rules import Renormalised, RestRule, Unclosed
from opd_jax.losses.supports import FULL, Columns, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'renormalised': {'rest': Renormalised()},
  'forward_kl': {'divergence': ForwardKL()},
  'two columns': {'columns': (0, 1)},
  'whole vocabulary': {'columns': None},
}


def safesteer(
  *,
  columns: tuple[int, ...] | None = tuple(range(50)),
  divergence: Divergence = ReverseKL(),
  rest: RestRule = Unclosed(),
) -> Method:
  r"""The plain sum of reverse KL over the tokens with which a safe answer begins.

      L = mean_i (1 / n_i) Σ_t Σ_{v ∈ S} p(v) log(p(v) / q(v)),      q a copy of the student that was steered

  arXiv:2606.02530 and its code. The sum is not closed on purpose: it takes mass away from S unless q > e p, so S only
  rises where the teacher is far surer than the student, on harmful prompts. Renormalised, S rises everywhere, and the
  paper loses 3 to 5 points of capability. Departs: the paper steers its teacher by adding a direction to a layer's
  states; here q is the judge `teacher`, whatever makes it refuse: its weights, or a context that tells it to.

  Args:
    columns: S, 50 tokens in the paper: those that the steered model prefers most over the plain one where it begins a
      refusal. They belong to a tokenizer, so the default, the first 50 ids, stands for no safe word; None takes all.
    divergence: of the entries.
    rest: how S is closed.
  """
  support = FULL if columns is None else Support(entries=Columns(tuple(columns)), rest=rest)
  term = DivergenceTerm(divergence=divergence, support=support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_sequence(evidence.mask)),)

  claim: Claim = Nothing('only a few columns are compared, and their mass is pushed down')
  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=Unbiased(divergence=divergence) if columns is None else claim,
    paper='arXiv:2606.02530',
  )
