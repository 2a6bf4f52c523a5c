"""Floor 3. Snapshots of the student that serve as judges: which there are, how they begin, how they are refreshed."""

import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax import ramps
from opd_jax.judges.spec import AnyJudge, Refresh, named_parts
from opd_jax.types import Params


def refreshes_of(judges: Mapping[str, AnyJudge], asked: Iterable[str]) -> dict[str, Refresh]:
  """Returns the refresh of each snapshot among the judges that `asked` names."""
  return {
    part_name: part.refresh
    for name in asked
    for part_name, part in named_parts(name, judges[name])
    if part.weights is None and not part.refresh.is_live
  }


def initial(refreshes: Mapping[str, Refresh], student: Params) -> dict[str, Params]:
  """Copies of the student, where a stage begins."""
  return {name: jax.tree.map(jnp.copy, student) for name in refreshes}


@functools.partial(jax.jit, donate_argnames=('old',))
def refreshed(old: Params, new: Params, rate: Float[Array, '']) -> Params:
  """A judge's weights after one refresh; with rate 1 exactly the student's."""
  blend = lambda phi, theta: jnp.where(rate == 1, theta, phi + rate * (theta - phi))
  return jax.tree.map(blend, old, new)


def followed(
  snapshots: Mapping[str, Params],
  refreshes: Mapping[str, Refresh],
  student: Params,
  step: int,
  decisions: Mapping[str, float] = ramps.NO_DECISIONS,
) -> dict[str, Params]:
  """The snapshots after a step of the stage, the first being 1; `decisions` as in `ramps.at`."""
  return {
    name: refreshed(old, student, jnp.float32(ramps.at(refreshes[name].rate, step, decisions)))
    if refreshes[name].is_due(step)
    else old
    for name, old in snapshots.items()
  }
