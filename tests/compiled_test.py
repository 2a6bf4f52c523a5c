"""What the compiler made of the vocabulary pass: no buffer and no collective of tokens × vocabulary, anywhere."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from opd_jax.losses import vocabulary
from opd_jax.losses.divergences import ForwardKL, JensenShannon, ReverseKL
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import FULL, StudentTopK, Support
from opd_jax.losses.terms import DivergenceTerm, PolicyGradient
from opd_jax.losses.vocab_shard import Target
from opd_jax.sharding import mesh_layout

B, R, D, V, TILE = 8, 128, 4, 4096, 16
TOP = Support(entries=StudentTopK(8), rest=Tail())
TERMS = {
  'reverse full': DivergenceTerm(divergence=ReverseKL(), support=FULL),
  'jsd full': DivergenceTerm(divergence=JensenShannon(beta=0.5), support=FULL),
  'student top': DivergenceTerm(divergence=ForwardKL(), support=TOP),
  'policy gradient': PolicyGradient(),
}
COLLECTIVE = re.compile(
  r' = \(?(.*?)\)? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)'
)


def compiled(layout, term):
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  target = Target(hidden=shape(B, R, 2 * D), head=shape(2 * D, V))

  def loss(hidden, head, response, target, coefficient):
    return vocabulary.weighted_sum(
      hidden, head, response, {'teacher': target}, (term(coefficient),), layout=layout, tile=TILE
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
      weighted = (term(jnp.ones((rows, R))),)
      response = jnp.zeros((rows, R), jnp.int32)
      targets = {'teacher': target}
      return vocabulary.weighted_sum(
        hidden, head, response, targets, weighted, layout=layout, tile=TILE
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
