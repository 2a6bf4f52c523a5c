"""Floor 1. From a mask to coefficients that are already divided: what one token counts in the *whole* batch.

Per token and per sequence are different methods, not a matter of taste: per sequence a token of a short
response weighs more. None of these can depend on how a batch is cut, because they are taken before it is.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from opd_jax.types import AnyArray

Mask = Bool[AnyArray, 'B R']
Coefficients = Float[AnyArray, 'B R']


def per_token(mask: Mask) -> Coefficients:
  """Every token counts once: 1 / tokens of the batch. With a filtered mask, what was dropped is not counted."""
  return mask / jnp.maximum(mask.sum(), 1)


def per_sequence(mask: Mask) -> Coefficients:
  """Every response that has a token counts once, however long.

  >>> print(per_sequence(jnp.array([[True, True], [True, False], [False, False]])))
  [[0.25 0.25]
   [0.5  0.  ]
   [0.   0.  ]]
  """
  lengths = mask.sum(axis=1, keepdims=True)
  rows = jnp.maximum((lengths > 0).sum(), 1)
  return mask / (jnp.maximum(lengths, 1) * rows)


def summed(mask: Mask) -> Coefficients:
  """No division: the learning rate then has to know the size of a batch."""
  return mask.astype(float)


def filtered(mask: Mask, keep: Bool[AnyArray, ' B']) -> Coefficients:
  """Per token over the responses that are kept: the others leave numerator and denominator."""
  return per_token(mask & keep[:, None])
