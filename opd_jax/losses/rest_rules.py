"""Floor 1. How the mass outside of the compared entries is closed: always said, never a default."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax.losses.divergences import Divergence, Raw
from opd_jax.static import static


class OutsideMass(NamedTuple):
  """log of the mass outside the entries, where somebody has summed it; then it is an input with a gradient of its own.

  None: one minus what is inside. That difference is off by the rounding of one, 1e-7 in float32: all there is of the
  tail of a peaked model.
  """

  log_p: Float[Array, '*N'] | None = None
  log_q: Float[Array, '*N'] | None = None


@jax.custom_jvp
def _remainder(log: Float[Array, '*N C']) -> Float[Array, '*N 1']:
  """log( 1 - Σ exp log )."""
  kept = jnp.minimum(_mass(log), -jnp.finfo(log.dtype).eps)
  return jnp.log(-jnp.expm1(kept))


@_remainder.defjvp
def _remainder_jvp(primals, tangents):
  (log,), (tangent,) = primals, tangents
  rest = _remainder(log)
  return rest, -jnp.sum(jnp.exp(log) * tangent, axis=-1, keepdims=True) / jnp.exp(rest)


def _rests(log_p, log_q, outside: OutsideMass) -> tuple[Float[Array, '*N 1'], Float[Array, '*N 1']]:
  """log of the mass outside, of either side."""
  p = _remainder(log_p) if outside.log_p is None else outside.log_p[..., None]
  if outside.log_q is not None:
    return p, outside.log_q[..., None]
  # Where nothing lies outside, nothing of a sparse teacher does, whatever its rounding says.
  return p, jnp.where(p == -jnp.inf, -jnp.inf, _remainder(log_q))


def _mass(log: Float[Array, '*N C']) -> Float[Array, '*N 1']:
  """log Σ exp; zero for an empty support, which then divides by one."""
  empty = (log == -jnp.inf).all(axis=-1, keepdims=True)
  return jax.nn.logsumexp(jnp.where(empty, -jnp.log(log.shape[-1]), log), axis=-1, keepdims=True)


class RestRule:
  """What a divergence makes of the mass outside the entries."""

  label = ''

  @property
  def reads_outside(self) -> bool:
    """Whether the mass outside the entries matters."""
    return False

  def check(self, divergence: Divergence) -> None:
    """Refuses a divergence that has no finite value under this rule."""

  def value(
    self, divergence: Divergence, log_p: Array, log_q: Array, outside: OutsideMass
  ) -> Array:
    raise NotImplementedError


@static
class Tail(RestRule):
  """One more entry holds the rest of each side: an exact coarse-graining, never above the whole."""

  label = 'tail'

  @property
  def reads_outside(self) -> bool:
    return True

  def value(self, divergence, log_p, log_q, outside):
    pairs = zip((log_p, log_q), _rests(log_p, log_q, outside), strict=True)
    return divergence(*(jnp.concatenate(pair, axis=-1) for pair in pairs))


@static
class Renormalised(RestRule):
  """Each side is divided by its mass on the entries: blind to what lies outside."""

  label = 'renormalised'

  def value(self, divergence, log_p, log_q, outside):
    return divergence(log_p - _mass(log_p), log_q - _mass(log_q))


@static
class TeacherOnly(RestRule):
  """The teacher is divided by its mass, the student's rest stays: pulls the student into the entries."""

  label = 'teacher only'

  @property
  def reads_outside(self) -> bool:
    return True

  def check(self, divergence):
    with jax.ensure_compile_time_eval():
      finite = bool(jnp.isfinite(divergence.entry(jnp.log(0.5), jnp.array(-jnp.inf))))
    if not finite:
      raise ValueError(
        f'supports: {divergence.name} is infinite where the teacher has no mass, and TeacherOnly says that it has none '
        'outside the entries. Close with Tail or Renormalised, or take ForwardKL or a JensenShannon.'
      )

  def value(self, divergence, log_p, log_q, outside):
    log_p = jnp.concatenate([log_p, _rests(log_p, log_q, outside)[0]], axis=-1)
    nothing = jnp.full_like(log_p[..., :1], -jnp.inf)
    return divergence(log_p, jnp.concatenate([log_q - _mass(log_q), nothing], axis=-1))


@static
class Stopped(RestRule):
  """-Σ p · stop_gradient(w): a truncated sum whose gradient is that of the kept entries."""

  label = 'stopped'

  def value(self, divergence, log_p, log_q, outside):
    # Σ -p · w has the value of the truncated sum for reverse KL; p · w is `pull`, finite where w is not.
    pull = jax.lax.stop_gradient(divergence.pull(log_p, log_q))
    alive = jnp.where(log_p == -jnp.inf, 0.0, log_p)
    return -jnp.sum(pull * jnp.exp(alive - jax.lax.stop_gradient(alive)), axis=-1)


@static
class Centred(RestRule):
  """The plain sum of centred entries: for reverse KL Σ p log(p / q) - p + q, with the gradient of `Stopped`."""

  label = 'centred'

  def value(self, divergence, log_p, log_q, outside):
    return divergence(log_p, log_q)


@static
class PerCandidate(RestRule):
  """-Σ weight · w · ρ, ρ = p / stop_gradient(p) = 1: a policy gradient with the advantage w(u) for every entry.

  Args:
    weight: 'student' or 'teacher' takes that side's probability, divided by its mass on the entries; 'none' takes 1.
  """

  weight: str = 'student'

  label = 'per candidate'

  def __post_init__(self):
    if self.weight not in ('student', 'teacher', 'none'):
      raise ValueError(
        f"PerCandidate: weight is 'student', 'teacher' or 'none', got {self.weight!r}."
      )

  def value(self, divergence, log_p, log_q, outside):
    fixed = jax.lax.stop_gradient(log_p)
    kept = fixed > -jnp.inf
    alive = jnp.where(kept, log_p, 0.0)
    side = {'student': fixed, 'teacher': log_q}.get(self.weight)
    weight = jnp.ones_like(fixed) if side is None else jnp.exp(side - _mass(side))
    advantage = divergence.weight(jnp.where(kept, log_q - fixed, 0.0))
    pull = jnp.where(kept, weight * advantage, 0.0)
    return -jnp.sum(pull * jnp.exp(alive - jax.lax.stop_gradient(alive)), axis=-1)


@static
class Unclosed(RestRule):
  """The plain truncated sum. Biased by the gradient of the kept mass; here to be certified as bad."""

  label = 'unclosed'

  def value(self, divergence, log_p, log_q, outside):
    return Raw(divergence)(log_p, log_q)
