"""Floor 2. Checksums of trees of arrays: they differ where the bits differ."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from opd_jax.processes import to_host

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def _sums(leaves: dict[str, Array]) -> dict[str, Array]:
  """Sums the words of every leaf modulo 2^32, each times an odd number that depends on its position."""

  def one(x):
    if jnp.issubdtype(x.dtype, jnp.bool_):
      x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    weight = jnp.ones((), jnp.uint32)
    for axis in range(words.ndim):
      weight = weight * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(
        jnp.uint32, words.shape, axis
      )
    return jnp.sum(words * (2 * weight + 1), dtype=jnp.uint32)

  return jax.tree.map(one, leaves)


def fingerprint(tree: Any) -> dict[str, int]:
  """Maps the path of every leaf to a checksum that any one changed bit changes; it is the same on any layout."""
  leaves = {
    jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  return {path: int(value) for path, value in to_host(_sums(leaves)).items()}


def digest(tree: Any) -> str:
  """Hashes the fingerprint of a tree to one short string."""
  text = repr(sorted(fingerprint(tree).items()))
  return hashlib.sha256(text.encode()).hexdigest()[:16]
