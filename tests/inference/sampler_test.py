import jax
import numpy as np

from opd_jax.data.prompts import left_padded
from opd_jax.inference import sampler
from opd_jax.models import presets


def test_a_row_draws_the_same_tokens_whoever_sits_beside_it(single, params_of):
  config = presets.tiny()
  run = lambda rows: sampler.generate(
    params_of(config),
    left_padded(rows, width=6, pad=0),
    jax.random.key(0),
    config=config,
    layout=single,
    new_tokens=8,
    temperature=1.0,
  )
  alone, together = run([[5, 6, 7]]), run([[5, 6, 7], [1], [9] * 6])
  np.testing.assert_array_equal(alone[0], together[0])
  assert len({tuple(row) for row in together.tolist()}) == 3
