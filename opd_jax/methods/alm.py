"""ALM, approximate likelihood matching, arXiv:2503.20083: both models shall find each chunk of a text as likely."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax import rollouts
from opd_jax.claims import Converges
from opd_jax.losses import chunks
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import Likelihood
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {'at temperature one': {'temperature': 1.0}, 'by token': {'weight': 'token'}}


def slope(
  student: Float[Array, 'B R'], teacher: Float[Array, 'B R'], *, temperature: float, eps: float
) -> Float[Array, 'B R']:
  """dL / dP = (e^b - e^a) / (1 - e^b) / τ, written so that it is exact near zero."""
  a = jnp.minimum(teacher, 0.0) / temperature - eps
  b = jnp.minimum(student, 0.0) / temperature - eps
  return jnp.exp(b) * jnp.expm1(a - b) / jnp.expm1(b) / temperature


def alm(
  *,
  temperature: float = 100.0,
  eps: float = 1e-6,
  weight: str = 'chunk',
) -> Method:
  r"""The likelihood of each chunk of the student's text is matched to the teacher's, as this chunk or any other.

      loss = Σ_c w_c L_c / Σ_c w_c,      L_c = -e^a b - (1 - e^a) log(1 - e^b)
      a = Q_c / τ - ε,   b = P_c / τ - ε,   P_c and Q_c the sums of log p and log q over the tokens of chunk c

  arXiv:2503.20083 in its released code (tokenkit), read line by line: binary cross-entropy, both sums cut at zero, τ =
  100, ε = 1e-6, every chunk counts one (its other choices: tokens, log(1 + tokens)). The gradient is that of
  -log p(y_t) times -w_c dL_c / dP_c at every token of the chunk. Q_c is published with closed ends, see
  `judges.foreign.open_ends`. Departs: the text is the student's own, where the
  paper reads a data set's; no `append_space` (the mass of tokens that begin a word), so a chunk that ends within a word
  keeps its bias.

  Args:
    temperature: τ.
    eps: ε, which keeps a chunk of probability one away from log 0.
    weight: of a chunk: 'chunk' counts it once, 'token' as often as the student has tokens in it.
  """
  if temperature <= 0 or eps <= 0 or weight not in ('token', 'chunk'):
    raise ValueError(
      f"alm: temperature and eps must be above 0, weight 'token' or 'chunk'; got {temperature}, {eps}, {weight!r}."
    )

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, chunk = evidence.mask, evidence.teacher.chunk
    student = chunks.sums(jnp.where(mask, evidence.student.logp, 0.0), chunk)
    teacher = chunks.sums(evidence.teacher.logp, chunk)
    steep = slope(student, teacher, temperature=temperature, eps=eps)
    size = jnp.maximum(chunks.sizes(mask, chunk), 1.0)
    counts = (
      per_token(mask) * size if weight == 'token' else mask / jnp.maximum((mask / size).sum(), 1)
    )
    return (Likelihood()(-counts * steep),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Converges(),
    paper='arXiv:2503.20083',
    reweigh=True,
  )
