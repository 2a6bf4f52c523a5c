import jax
import numpy as np
import pytest

from opd_jax.models.attention import attend, causal_mask, kernel
from opd_jax.models.config import RopeScaling
from opd_jax.models.layers import RMSNorm, rotary_frequencies, rotary_table, rotate
from opd_jax.models.presets import tiny

SHAPE = {'length': 256, 'head_dim': 128, 'masked': False}


@pytest.mark.parametrize(
  'platform, dtype, change, wanted',
  [
    ('cpu', 'bfloat16', {}, 'xla'),
    ('gpu', 'bfloat16', {}, 'cudnn'),
    ('gpu', 'float32', {}, 'xla'),
    ('gpu', 'bfloat16', {'head_dim': 256}, 'xla'),
    ('gpu', 'bfloat16', {'masked': True}, 'cudnn'),
    ('gpu', 'bfloat16', {'masked': True, 'length': 255}, 'xla'),
    ('tpu', 'bfloat16', {}, 'splash'),
    ('tpu', 'float32', {'masked': True}, 'splash'),
    ('tpu', 'bfloat16', {'length': 100}, 'xla'),
    ('tpu', 'bfloat16', {'length': 16_576}, 'splash'),
  ],
)
def test_the_kernel_is_chosen_from_platform_and_shapes(platform, dtype, change, wanted):
  assert kernel(platform, dtype, **{**SHAPE, **change}) == wanted


def test_the_mask_reads_from_start_to_self():
  seen = causal_mask(jax.numpy.array([[2, 3]]), jax.numpy.array([1]), 5)[0, 0]
  assert seen.astype(int).tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]


@pytest.mark.parametrize('group', [1, 2, 4])
def test_attention_is_the_softmax_average(group, single):
  draw = lambda seed, heads: (
    np.random.RandomState(seed).standard_normal((2, 6, heads, 8)).astype(np.float32)
  )
  query, key, value = draw(0, 4), draw(1, 4 // group), draw(2, 4 // group)
  start = np.array([0, 2], np.int32)
  got = attend(
    *map(
      jax.numpy.asarray,
      (
        query,
        key,
        value,
      ),
    ),
    start=jax.numpy.asarray(start),
    layout=single,
  )
  for row in range(2):
    for head in range(4):
      scores = query[row, :, head].astype(np.float64) @ key[row, :, head // group].T / np.sqrt(8)
      seen = np.tril(np.ones((6, 6), bool)) & (np.arange(6) >= start[row])
      chance = np.exp(np.where(seen, scores, -np.inf))
      with np.errstate(invalid='ignore'):
        want = chance @ value[row, :, head // group] / chance.sum(-1, keepdims=True)
      np.testing.assert_allclose(got[row, start[row] :, head], want[start[row] :], atol=1e-5)


def test_the_norm_rounds_before_it_scales():
  """In bfloat16 the published implementations round the normed value, then multiply; the order shows."""
  config = tiny(param_dtype='bfloat16')
  norm = RMSNorm(4, 'embed', config=config)
  norm.scale[...] = jax.numpy.array([1.7, 0.3, 1.1, 0.9], 'bfloat16')
  x = jax.numpy.asarray(np.random.RandomState(0).standard_normal((50, 4)), 'bfloat16')
  wide = np.asarray(x, np.float32)
  normed = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
  want = jax.numpy.asarray(normed, 'bfloat16') * norm.scale[...]
  assert (norm(x) == want).all()
  once = jax.numpy.asarray(normed * np.asarray(norm.scale[...], np.float32), 'bfloat16')
  assert (want != once).any()


def test_rotation_depends_on_distance_only():
  config = tiny()
  query, key = (
    np.random.RandomState(seed).standard_normal((1, 1, 1, 16)).astype(np.float32) for seed in (0, 1)
  )

  def score(at, other):
    turned = [
      rotate(jax.numpy.asarray(x), rotary_table(jax.numpy.array([[p]]), config))
      for x, p in ((query, at), (key, other))
    ]
    return float((turned[0] * turned[1]).sum())

  assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
  assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)


def test_llama_scaling_leaves_fast_turns_and_divides_slow_ones():
  scaling = RopeScaling(
    factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=8192
  )
  plain = rotary_frequencies(tiny(head_dim=128, rope_theta=5e5))
  stretched = rotary_frequencies(tiny(head_dim=128, rope_theta=5e5, rope_scaling=scaling))
  np.testing.assert_array_equal(stretched[:20], plain[:20])
  np.testing.assert_allclose(stretched[-20:], plain[-20:] / 8, rtol=1e-6)
  assert (np.diff(stretched) < 0).all()
