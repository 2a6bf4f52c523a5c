r"""Floor 5. A few keys whose draws are spread evenly, so that a mean over them is an expectation.

Over these keys every draw of a program visits each of COUNT equal strata of [0, 1) once, and every key has a mirror
image in which each of its draws u is 1 - u. So a mean over them is exact for

    a threshold of one draw          E[ u < rate ] = rate, where rate is a multiple of 1 / COUNT
    the order of two draws           E[ u < v ] = 1 / 2
    what is linear in either of them

and an estimate with COUNT samples for everything else. They are ordinary JAX keys: they split and fold.
"""

import functools

import jax
import jax.extend.random
import jax.numpy as jnp
from jaxtyping import Array, Key

COUNT = 20


def _threefry(stream):
  return jax.random.wrap_key_data(stream, impl='threefry2x32')


def _data(key):
  return jax.random.key_data(key)


def _with_stream(key, streams):
  number = jnp.broadcast_to(key[:1], (*streams.shape[:-1], 1))
  return jnp.concatenate([number, streams], axis=-1)


def _seed(seed):
  stream = _data(jax.random.key(seed, impl='threefry2x32'))
  return _with_stream(jnp.zeros((1,), jnp.uint32), stream)


def _split(key, shape):
  return _with_stream(key, _data(jax.random.split(_threefry(key[1:]), shape)))


def _fold_in(key, number):
  return _with_stream(key, _data(jax.random.fold_in(_threefry(key[1:]), number)))


def _strata(stream, size: int):
  """The stratum and the place in it, of every draw under the first half of the keys: [COUNT / 2, size] twice."""
  orders, signs, places = jax.random.split(stream, 3)
  pairs = jnp.tile(jnp.arange(COUNT // 2)[:, None], (1, size))
  pairs = jax.random.permutation(orders, pairs, axis=0, independent=True)
  low = jax.random.bernoulli(signs, 0.5, pairs.shape)
  place = jax.random.uniform(places, pairs.shape, jnp.float32, minval=0.25, maxval=0.75)
  return jnp.where(low, pairs, COUNT - 1 - pairs), place


def _random_bits(key, bit_width: int, shape: tuple[int, ...]):
  """Bits of the mirrored, stratified draws: the leading 16 hold the draw, the rest are constant."""
  size = functools.reduce(lambda x, y: x * y, shape, 1)
  number = key[0].astype(jnp.int32)
  mirrored = number >= COUNT // 2
  row = jnp.where(mirrored, COUNT - 1 - number, number)
  stratum, place = (part[row] for part in _strata(_threefry(key[1:]), size))
  kind = jnp.dtype(f'uint{bit_width}')
  leading = min(bit_width, 16)
  bits = ((stratum + place) / COUNT * 2**leading).astype(kind) << kind.type(bit_width - leading)
  return jnp.where(mirrored, ~bits, bits).reshape(shape)


@functools.cache
def _implementation():
  return jax.extend.random.define_prng_impl(
    key_shape=(3,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in,
    name='stratified', tag='strata',
  )  # fmt: skip


def stratified(seed: int = 0) -> Key[Array, ' K']:
  """The COUNT keys."""
  number = jnp.arange(COUNT, dtype=jnp.uint32)[:, None]
  stream = jnp.broadcast_to(_data(jax.random.key(seed, impl='threefry2x32')), (COUNT, 2))
  return jax.random.wrap_key_data(jnp.concatenate([number, stream], axis=1), impl=_implementation())
