"""Floor 2. Prefill and decode: prompts in, sampled tokens out."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from opd_jax.models import cache as caches
from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.types import Params, Prompts


@functools.partial(jax.jit, static_argnames=('config', 'layout', 'new_tokens', 'temperature'))
def generate(
  params: Params,
  prompts: Prompts,
  key: PRNGKeyArray,
  *,
  config: ModelConfig,
  layout: Layout,
  new_tokens: int,
  temperature: float,
) -> Int[Array, 'B R']:
  """`new_tokens` samples after every prompt. Row r draws from a stream of its own, whoever sits beside it."""
  model = transformer.bind(config, layout, params)
  width = prompts.tokens.shape[1]
  cache = caches.empty(config, layout, length=width + new_tokens, start=jnp.asarray(width - prompts.length))
  hidden, cache = model(jnp.asarray(prompts.tokens), cache=cache)
  streams = jax.vmap(lambda row: jax.random.fold_in(key, row))(prompts.row)

  def step(carry, position):
    hidden, cache = carry
    logits = transformer.logits_of(hidden[:, -1], model.head())
    keys = jax.vmap(lambda stream: jax.random.fold_in(stream, position))(streams)
    token = jax.vmap(jax.random.categorical)(keys, logits / temperature)
    return model(token[:, None], cache=cache), token

  _, tokens = jax.lax.scan(step, (hidden[:, -1:], cache), jnp.arange(new_tokens))
  return tokens.T
