"""Floor 3. Snapshots of the student that serve as judges: which there are, how they begin, how they are refreshed."""

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax import ramps
from opd_jax.judges.refresh import Refresh
from opd_jax.judges.spec import AnyJudge, Judge, named_parts
from opd_jax.types import Params


def refreshes_of(judges: Mapping[str, AnyJudge], asked: Iterable[str]) -> dict[str, Refresh]:
  """Returns the refresh of each snapshot among the judges that `asked` names."""
  return {
    part_name: part.refresh
    for name in asked
    for part_name, part in named_parts(name, judges[name])
    if isinstance(part, Judge) and part.weights is None and not part.refresh.is_live
  }


def initial(refreshes: Mapping[str, Refresh], student: Params) -> dict[str, Params]:
  """Copies of the student, where a stage begins."""
  return {name: jax.tree.map(jnp.copy, student) for name in refreshes}


@functools.partial(jax.jit, donate_argnames=('old',))
def refreshed(old: Params, new: Params, rate: Float[Array, '']) -> tuple[Params, Float[Array, '']]:
  """A judge's weights after one refresh, with rate 1 exactly the student's, and ‖θ - φ‖ before it."""
  blend = lambda phi, theta: jnp.where(rate == 1, theta, phi + rate * (theta - phi))
  gaps = jax.tree.map(
    lambda phi, theta: jnp.sum(jnp.square((theta - phi).astype(jnp.float32))), old, new
  )
  return jax.tree.map(blend, old, new), jnp.sqrt(sum(jax.tree.leaves(gaps)))


class Followed(NamedTuple):
  """Snapshots after a refresh, and how far each that moved was from the student before."""

  snapshots: dict[str, Params]
  shocks: dict[str, Float[Array, '']]


def followed(
  snapshots: Mapping[str, Params],
  refreshes: Mapping[str, Refresh],
  student: Params,
  due: Iterable[str],
  step: int,
  decisions: Mapping[str, float] = ramps.NO_DECISIONS,
) -> Followed:
  """The snapshots with those that are due refreshed, after a step of the stage, the first being 1.

  Args:
    due: names of those that move.
    decisions: as in `ramps.at`.
  """
  moved, shocks = dict(snapshots), {}
  for name in due:
    rate = jnp.float32(ramps.at(refreshes[name].rate, step, decisions))
    moved[name], shocks[name] = refreshed(snapshots[name], student, rate)
  return Followed(moved, shocks)
