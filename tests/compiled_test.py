"""What the compiler made of the vocabulary pass: no buffer and no collective of tokens × vocabulary, anywhere."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from opd_jax.losses import divergences, supports, terms, vocabulary
from opd_jax.losses.vocab_shard import Target
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.sharding import mesh_layout

B, R, D, V, TILE = 8, 128, 4, 4096, 16
TERMS = {
  'reverse full': terms.divergence(divergences.reverse_kl(), supports.full()),
  'jsd full': terms.divergence(divergences.jensen_shannon(beta=0.5), supports.full()),
  'student top': terms.divergence(
    divergences.forward_kl(), supports.student_top_k(8, close=supports.tail())
  ),
  'policy gradient': terms.policy_gradient(),
}
COLLECTIVE = re.compile(
  r' = \(?(.*?)\)? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)'
)


def compiled(layout, term):
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  target = Target(hidden=shape(B, R, 2 * D), head=shape(2 * D, V))

  def loss(hidden, head, response, target, coefficient):
    weighted_terms = (WeightedTerm(term, coefficient, {}),)
    return vocabulary.weighted_sum(
      hidden, head, response, target, weighted_terms, layout=layout, tile=TILE
    )

  program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
  response = jax.ShapeDtypeStruct((B, R), jnp.int32)
  return program.lower(shape(B, R, D), shape(D, V), response, target, shape(B, R)).compile()


def sizes(text):
  return [
    math.prod(map(int, dims.split(','))) for dims in re.findall(r'[a-z]+\d+\[([\d,]+)\]', text)
  ]


@pytest.mark.parametrize('name', TERMS)
@pytest.mark.parametrize(
  'shape', [{}, {'data': 2, 'tensor': 4}], ids=['one device', '2 x 4 devices']
)
def test_nothing_of_tokens_times_vocabulary_is_made_or_sent(name, shape):
  layout = mesh_layout(**shape)
  program = compiled(layout, TERMS[name])
  text = program.as_text()
  here = (B * R // layout.size('batch')) * (V // layout.size('vocab'))
  assert max(sizes(text)) < here
  sent = [max(sizes(match[1])) for match in COLLECTIVE.finditer(text)]
  # The largest thing sent is the gradient of a head, once a batch; of a tile of logits, only sums.
  assert max(sent, default=0) <= 2 * D * V
  assert bool(sent) == (not layout.is_single)
  assert program.memory_analysis().temp_size_in_bytes < 4 * here


def test_memory_does_not_grow_with_tokens():
  """Four times the tokens, the same temporaries: but for one number per token and term, and the states in tiles."""

  def temporaries(rows):
    term, layout = TERMS['reverse full'], mesh_layout()
    shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)

    def loss(hidden, head, target):
      weighted_terms = (WeightedTerm(term, jnp.ones((rows, R)), {}),)
      response = jnp.zeros((rows, R), jnp.int32)
      return vocabulary.weighted_sum(
        hidden, head, response, target, weighted_terms, layout=layout, tile=TILE
      )[0]

    target = Target(hidden=shape(rows, R, 2 * D), head=shape(2 * D, V))
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return (
      program.lower(shape(rows, R, D), shape(D, V), target)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  few, many = temporaries(2), temporaries(8)
  assert many - few < 6 * R * (4 * D) * 4 * 2
