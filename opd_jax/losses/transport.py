"""Floor 1. Entropic optimal transport between two short lists of states, in the log domain: detached numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from opd_jax.types import AnyArray

TINY = 1e-12


def cosine_cost(
  one: Float[AnyArray, '*N C D'], other: Float[AnyArray, '*N K D']
) -> Float[Array, '*N C K']:
  """1 - cosine of every pair of states; 1 where a state is zero."""
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), TINY)
  return 1.0 - unit(one) @ jnp.swapaxes(unit(other), -1, -2)


def sinkhorn(
  cost: Float[AnyArray, 'C K'],
  rows: Bool[AnyArray, ' C'],
  columns: Bool[AnyArray, ' K'],
  *,
  eps: float,
  iterations: int,
) -> Float[Array, 'C K']:
  r"""The plan γ that minimises Σ γ C + ε Σ γ log γ with uniform marginals, by Sinkhorn's iterations.

  γ_ij = exp(u_i + v_j - C_ij / ε). Rows come last: theirs are the exact marginals, those of columns follow with
  the iterations.

  Args:
    cost: C.
    rows, columns: which take part; the others have no mass.
    eps: ε; the smaller, the sharper the plan and the slower the iterations.
    iterations: of both sides.
  """
  both = rows[:, None] & columns[None, :]
  kernel = jnp.where(both, -cost / eps, -jnp.inf)
  share = lambda there: -jnp.log(jnp.maximum(there.sum(), 1).astype(cost.dtype))
  # Outside, sums are of nothing: their logs are replaced before they can become NaN.
  left = lambda v: jnp.where(rows, share(rows) - jax.nn.logsumexp(kernel + v, axis=1), 0.0)
  top = lambda u: jnp.where(
    columns, share(columns) - jax.nn.logsumexp(kernel + u[:, None], axis=0), 0.0
  )
  step = lambda _, v: top(left(v))
  v = jax.lax.fori_loop(0, iterations - 1, step, jnp.zeros_like(cost[0]))
  return jnp.where(both, jnp.exp(left(v)[:, None] + v + kernel), 0.0)
