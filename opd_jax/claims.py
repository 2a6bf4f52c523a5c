"""Floor 2. What a method says of its gradient; `opd certify` holds it to that."""

from collections.abc import Callable

from jaxtyping import Array

from opd_jax.losses.divergences import Divergence
from opd_jax.static import static

Optimum = Callable[[Array, Array], Array]  # (log q, log r) -> logits; r is the reference


def to_teacher(log_q: Array, log_r: Array) -> Array:
  return log_q


@static
class Unbiased:
  """The expected gradient is that of a divergence from `optimum`, at the writer's own prefixes."""

  divergence: Divergence
  optimum: Optimum = to_teacher


@static
class Converges:
  """No divergence has this gradient, but following it leads to `optimum`."""

  optimum: Optimum = to_teacher


@static(kw_only=False)
class Nothing:
  """No such claim, and why."""

  why: str


Claim = Unbiased | Converges | Nothing
