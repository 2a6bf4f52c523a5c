"""The mixture against a loop over tokens and experts, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models.config import Experts
from opd_jax.models.experts import mixture, route


def draw(seed, *shape):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


def by_hand(*arrays, experts):
  x, router, gate, up, down = (np.asarray(array, np.float64) for array in arrays)
  logits = x @ router
  chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  out = np.zeros_like(x)
  for row, chance in enumerate(chances):
    best = np.argsort(-chance)[: experts.per_token]
    weights = chance[best] / (chance[best].sum() if experts.normalise else 1.0)
    for expert, weight in zip(best, weights, strict=True):
      hidden = x[row] @ gate[expert]
      hidden = hidden / (1 + np.exp(-hidden)) * (x[row] @ up[expert])
      out[row] += weight * (hidden @ down[expert])
  return out


@pytest.mark.parametrize('normalise', [True, False])
@pytest.mark.parametrize('per_token', [1, 2, 5])
def test_the_mixture_is_the_sum_over_the_chosen_experts(normalise, per_token):
  experts = Experts(count=5, per_token=per_token, width=6, normalise=normalise)
  arrays = draw(0, 9, 4), draw(1, 4, 5), draw(2, 5, 4, 6), draw(3, 5, 4, 6), draw(4, 5, 6, 4)
  np.testing.assert_allclose(
    mixture(*arrays, experts=experts), by_hand(*arrays, experts=experts), atol=1e-5
  )


def test_a_token_does_not_notice_its_neighbours():
  """No capacity, nothing dropped: rows computed alone and together are equal."""
  experts = Experts(count=4, per_token=2, width=6, normalise=True)
  x, *weights = draw(0, 7, 4), draw(1, 4, 4), draw(2, 4, 4, 6), draw(3, 4, 4, 6), draw(4, 4, 6, 4)
  together = mixture(x, *weights, experts=experts)
  alone = np.concatenate([mixture(x[i : i + 1], *weights, experts=experts) for i in range(7)])
  np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_router_decides_in_float32():
  """Two experts whose logits differ by less than bfloat16 can tell."""
  experts = Experts(count=2, per_token=1, width=1, normalise=True)
  x = jnp.ones((1, 1), 'bfloat16')
  chosen, weights = route(x, jnp.array([[1.0, 1.001]]), experts)
  assert chosen.tolist() == [[1]] and weights.dtype == jnp.float32
  # An accelerator would multiply in fewer bits if the program did not forbid it.
  program = str(jax.make_jaxpr(lambda x, router: route(x, router, experts))(x, jnp.ones((1, 2))))
  assert 'Precision.HIGHEST' in program
