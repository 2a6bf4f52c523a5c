"""ADWIN, arXiv:2605.28396: responses as short as their gradient still points where that of whole ones does."""

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import advantages
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.probes import Probe
from opd_jax.ramps import Latest

VARIANTS = {'half of it': {'agreement': 0.5}, 'nearly all of it': {'agreement': 0.9}}


def adwin(
  *,
  windows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048),
  agreement: float = 2**-0.5,
  every: int = 5,
  full: int = 8192,
) -> Method:
  r"""OPD on the first L tokens; L is the smallest window whose gradient agrees with that of whole responses.

      L = min{ L : cos(g_L, g_full) ≥ ρ },   ρ = √2 / 2;      the largest window where none is

  arXiv:2605.28396. Departs: every so many steps the batch itself is written in full, learnt from and probed, where the
  paper continues 64 prefixes aside and reads them up to five steps late; the cosine is of whole gradients. The paper
  leaves open what happens where no window qualifies.

  Args:
    windows: the L's.
    agreement: ρ.
    every: steps between two probes.
    full: tokens of a whole response at most.
  """
  stop_after = Latest(name='window', metric='probe/window', full=full, least=1, every=every)

  def weigh(evidence: Evidence) -> WeightedTerms:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    return (PolicyGradient()(per_token(evidence.mask) * gap),)

  return Method(
    rollout=rollouts.student(stop_after=stop_after),
    weigh=weigh,
    claim=Nothing('responses are as long as the last probe says'),
    probe=Probe(windows=windows, agreement=agreement, every=every),
    paper='arXiv:2605.28396',
  )
