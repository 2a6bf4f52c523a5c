r"""Floor 4. How training moved the weight matrices: how many entries, in how many directions, and which (2606.07082).

For a matrix W before and W' after, ΔW = W' - W, everything in float64 of what bfloat16 can hold of both:

    sparsity    fraction of entries with |W' - W| ≤ η max(|W|, |W'|)
    spectrum    ‖σ(W') - σ(W)‖ / ‖σ(W)‖
    rotation    mean angle between the first k singular vectors of W and of W', in degrees: left and right
    rank        ‖ΔW‖_F² / ‖ΔW‖_op²
    small       of the entries that changed, the fraction among the half of W that is smallest
    principal   the same among the half that is largest in W's best approximation of rank k

An update without a direction has a `small` and a `principal` of one half.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float

from opd_jax.models.config import ModelConfig
from opd_jax.processes import to_host
from opd_jax.sharding import Layout
from opd_jax.storage import parameter_names
from opd_jax.types import Params

ETA = 1e-3  # of a relative change that bfloat16 shows
RANK = 64


class Change(NamedTuple):
  """How one matrix was moved; None where nothing was."""

  entries: int
  sparsity: float
  spectrum: float
  rotation: float
  rank: float | None
  small: float | None
  principal: float | None


def change_of(
  before: Float[np.ndarray, 'I O'], after: Float[np.ndarray, 'I O'], *, rank: int = RANK
) -> Change:
  """How a matrix was moved.

  Args:
    rank: k, at most the matrix's own.
  """
  old, new = (x.astype(ml_dtypes.bfloat16).astype(np.float64) for x in (before, after))
  moved = np.abs(new - old) > ETA * np.maximum(np.abs(old), np.abs(new))
  k = min(rank, *old.shape)
  (u, size, v), (u_new, size_new, v_new) = (
    np.linalg.svd(x, full_matrices=False) for x in (old, new)
  )
  cosines = [
    np.linalg.svd(a.T @ b, compute_uv=False)
    for a, b in ((u[:, :k], u_new[:, :k]), (v[:k].T, v_new[:k].T))
  ]
  among = lambda chosen: float((moved & chosen).sum() / moved.sum()) if moved.any() else None
  delta = np.linalg.svd(new - old, compute_uv=False)
  approximation = np.abs((u[:, :k] * size[:k]) @ v[:k])
  return Change(
    entries=old.size,
    sparsity=float(1 - moved.mean()),
    spectrum=float(np.linalg.norm(size_new - size) / np.linalg.norm(size)),
    rotation=float(np.degrees(np.arccos(np.clip(np.concatenate(cosines), 0, 1))).mean()),
    rank=float((delta**2).sum() / delta[0] ** 2) if delta[0] > 0 else None,
    small=among(np.abs(old) <= np.median(np.abs(old))),
    principal=among(approximation >= np.median(approximation)),
  )


def changes(
  config: ModelConfig,
  layout: Layout,
  before: Params,
  after: Params,
  progress: Callable[[int, int, str], None] = lambda done, total, name: None,
  *,
  rank: int = RANK,
) -> dict[str, Change]:
  """How every linear map of a model was moved, by its published name; every process calls it."""
  maps = [piece for piece in parameter_names.pieces(config, layout) if piece.inputs]
  old, new = (parameter_names.flat(params) for params in (before, after))
  found = {}
  for number, piece in enumerate(maps):
    progress(number, len(maps), piece.name)
    pair = to_host([x[piece.path][piece.at] if piece.at else x[piece.path] for x in (old, new)])
    matrices = [np.asarray(x, np.float32).reshape(piece.published_shape[::-1]) for x in pair]
    found[piece.name] = change_of(*matrices, rank=rank)
  return found


def summary(changes: Mapping[str, Change]) -> dict[str, float]:
  """Means over matrices; of the sparsity, over entries."""
  rows = list(changes.values())
  entries = sum(row.entries for row in rows)
  means = {'sparsity': sum(row.sparsity * row.entries for row in rows) / entries}
  for name in Change._fields[2:]:
    known = [value for row in rows if (value := getattr(row, name)) is not None]
    if known:
      means[name] = float(np.mean(known))
  return means


def copy_of(params: Params) -> Params:
  """Weights as they are now, in the memory of this host."""
  return jax.tree.map(np.array, to_host(params))
