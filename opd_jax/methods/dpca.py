"""DPCA, arXiv:2606.09456: the log-probability that a teacher gives a chunk, shared out among the student's tokens."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Unbiased
from opd_jax.losses import advantages, chunks
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import ClippedRatio
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {'even': {'credit': 'even'}}
SURE = 1e-8  # nats of a chunk below which its shares mean nothing


def dpca(
  *,
  credit: str = 'proportional',
  bound: float = 10.0,
  low: float = 0.2,
  high: float = 0.28,
  dual: float = 10.0,
) -> Method:
  r"""OPD across tokenizers: a chunk's log-ratio, shared out among its tokens by how unlikely the student found them.

      A_t = (Q_c / P_c - 1) log p(y_t),      P_c = Σ_{t in c} log p(y_t),   Q_c = Σ log q over the teacher's tokens of c

  arXiv:2606.09456 in its released code: the shares of a chunk sum to Q_c - P_c, A within ±10, PPO's clip per token,
  Q_c / m where P_c is zero. A chunk of one token has A = log q - log p: with one tokenizer this is OPD. Released runs
  leave chunks of more than six tokens out (`judges.foreign.longest_chunk = 6`) and end chunks where both models' tokens
  do (`judges.foreign.open_ends = False`). Departs: control tokens that both models have by one name are taught like
  others; released code teaches the end of a response only.

  Args:
    credit: 'proportional', or 'even', which gives each token of a chunk (Q_c - P_c) / m: an ablation.
    bound: of A.
    low, high, dual: see `ClippedRatio`; they act from the second update of a batch on.
  """
  if credit not in ('proportional', 'even') or bound <= 0:
    raise ValueError(
      f"dpca: credit is 'proportional' or 'even' and bound above 0, got {credit!r}, {bound}."
    )
  ratio = ClippedRatio(low=low, high=high, dual=dual)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, chunk, own = evidence.mask, evidence.teacher.chunk, evidence.student.logp
    teacher, student = chunks.sums(evidence.teacher.logp, chunk), chunks.sums(own, chunk)
    size = jnp.maximum(chunks.sizes(mask, chunk), 1.0)
    sure = jnp.abs(student) < SURE
    shared = teacher / jnp.where(sure, 1.0, student) * own
    log_q = jnp.where(sure, teacher / size, shared)
    if credit == 'even':
      log_q = own + (teacher - student) / size
    advantage = advantages.clipped(log_q - own, min=-bound, max=bound)
    advantage = jnp.where(mask, advantage, 0.0)
    return (ratio(per_token(mask), advantage=advantage, behaviour_logp=own),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Unbiased(divergence=ReverseKL()),
    paper='arXiv:2606.09456',
  )
