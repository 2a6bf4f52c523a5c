"""The scorer: its shift, its tiles, its buckets; and that sampler, scorer and training forward agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.data.prompts import left_padded
from opd_jax.inference import sampler, scorer
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.types import ScoreRequest

PROMPTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5]]
RESPONSES = [[3, 4], [1, 2, 3, 4, 5, 6], [7]]


def dense(params, prompt, response, *, config, layout):
  """[R, V] log-probabilities by the plain forward pass of one row, in float64 after the logits."""
  model = transformer.bind(config, layout, params)
  hidden = model(jnp.asarray([prompt + response]))
  logits = np.asarray(transformer.logits_of(hidden, model.head()), np.float64)[
    0, len(prompt) - 1 : -1
  ]
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_scores_are_those_of_the_plain_forward_pass(family, single, params_of):
  config = family()
  request = ScoreRequest(entropy=True, top_k=4)
  got = scorer.score_rows(
    params_of(config), PROMPTS, RESPONSES, config=config, layout=single, request=request, rows=2
  )
  for scores, prompt, response in zip(got, PROMPTS, RESPONSES, strict=True):
    want = dense(params_of(config), prompt, response, config=config, layout=single)
    np.testing.assert_allclose(scores.logp, want[np.arange(len(response)), response], atol=1e-5)
    np.testing.assert_allclose(scores.entropy, -(np.exp(want) * want).sum(-1), atol=1e-5)
    np.testing.assert_allclose(scores.top_k.logp, -np.sort(-want, axis=-1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(
      np.take_along_axis(want, scores.top_k.ids, -1), scores.top_k.logp, atol=1e-5
    )


def batch(width=8, length=8):
  prompts = left_padded(PROMPTS, width=width, pad=0)
  response = np.zeros((3, length), np.int32)
  for row, tokens in enumerate(RESPONSES):
    response[row, : len(tokens)] = tokens
  return prompts.tokens, prompts.length, response


def test_asked_ids_hidden_states_and_layers(single, params_of):
  config = presets.tiny(num_layers=3)
  ids = np.random.RandomState(0).randint(0, 320, (3, 8, 5)).astype(np.int32)
  request = ScoreRequest(hidden=True, layers=(0, 2), top_k=320)
  scores = scorer.score(
    params_of(config), *batch(), ids, config=config, layout=single, request=request
  )
  assert (
    scores.hidden.shape == (3, 8, 64)
    and scores.layers.shape == (3, 8, 2, 64)
    and scores.entropy is None
  )
  want = dense(params_of(config), PROMPTS[1], RESPONSES[1], config=config, layout=single)
  np.testing.assert_allclose(
    scores.at_ids.logp[1, :6], np.take_along_axis(want, ids[1, :6], -1), atol=1e-5
  )
  model = transformer.bind(config, single, params_of(config))
  np.testing.assert_allclose(model.final_norm(scores.layers[:, :, 1]), scores.hidden, atol=1e-5)
  shallow = presets.tiny(num_layers=1)
  first = {
    **params_of(config),
    'blocks': jax.tree.map(lambda leaf: leaf[:1], params_of(config)['blocks']),
  }
  alone = scorer.score(
    first, *batch(), config=shallow, layout=single, request=ScoreRequest(layers=(0,))
  )
  np.testing.assert_allclose(alone.layers[:, :, 0], scores.layers[:, :, 0], atol=1e-5)


def test_moving_one_token_moves_exactly_the_scores_that_may_see_it(single, params_of):
  """Alignment: a response token is scored at its own position and seen only by later ones."""
  config = presets.tiny()
  tokens, length, response = batch()
  run = lambda response: np.asarray(
    scorer.score(params_of(config), tokens, length, response, config=config, layout=single).logp
  )
  changed = response.copy()
  changed[1, 3] = 77
  moved = run(changed) != run(response)
  assert not moved[[0, 2]].any() and not moved[1, :3].any() and moved[1, 3:6].all()


@pytest.mark.parametrize('width', [5, 8, 30])
def test_padding_is_inert(width, single, params_of):
  config = presets.tiny()
  want = scorer.score(params_of(config), *batch(), config=config, layout=single).logp
  got = scorer.score(params_of(config), *batch(width), config=config, layout=single).logp
  for row, response in enumerate(RESPONSES):
    np.testing.assert_allclose(got[row, : len(response)], want[row, : len(response)], atol=1e-5)
  tokens, length, response = batch(width)
  other = np.where(np.arange(width) < width - length[:, None], 42, tokens)
  again = scorer.score(
    params_of(config), other, length, response, config=config, layout=single
  ).logp
  for row, tokens in enumerate(RESPONSES):
    np.testing.assert_array_equal(again[row, : len(tokens)], got[row, : len(tokens)])


@pytest.mark.parametrize('tile', [1, 5, 24, 1000])
def test_any_tile_gives_the_same(tile, single, params_of, monkeypatch):
  config = presets.tiny(norm_epsilon=1e-6 * (1 + tile))  # its own program
  monkeypatch.setattr(scorer, 'TILE_BYTES', tile * 4 * config.vocab_size)
  scores = scorer.score(
    params_of(config), *batch(), config=config, layout=single, request=ScoreRequest(entropy=True)
  )
  for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
    want = dense(params_of(config), prompt, response, config=config, layout=single)
    np.testing.assert_allclose(
      scores.logp[row, : len(response)], want[np.arange(len(response)), response], atol=1e-5
    )


def test_no_buffer_holds_tokens_times_vocabulary(single):
  """Read off the compiled program: 4,096 tokens, a vocabulary of 20,000."""
  config = presets.tiny(vocab_size=20_000)
  shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((8, 64), (8,), (8, 512))]
  params = transformer.abstract(config, single)
  compiled = scorer.score.lower(
    params, *shapes, config=config, layout=single, request=ScoreRequest(entropy=True)
  ).compile()
  memory = compiled.memory_analysis()
  assert memory is not None
  assert memory.temp_size_in_bytes < 4096 * 20_000 * 4 * 0.75
  tile = scorer.tile_of(config.vocab_size, 4096)
  assert f'f32[{tile},20000]' in compiled.as_text() and 'f32[4096,20000]' not in compiled.as_text()


def test_sampler_scorer_and_training_agree(family, single, params_of):
  config = family()
  prompts = left_padded(PROMPTS, width=5, pad=0)
  sampling = sampler.Sampling(budget=12, slots=2)
  rollout = sampler.generate(
    sampler.Model(config, single, params_of(config)), prompts, jax.random.key(0), sampling=sampling
  )
  scores = scorer.score(
    params_of(config),
    prompts.tokens,
    prompts.length,
    rollout.response,
    config=config,
    layout=single,
  )
  np.testing.assert_allclose(rollout.logp, scores.logp, atol=1e-5)
  np.testing.assert_allclose(
    rollout.behaviour_logp, rollout.logp, atol=1e-6
  )  # no rule: drawn from the model itself


def test_a_layout_scores_the_same(family, single, params_of):
  config, layout = family(), mesh_layout(fsdp=2, tensor=2)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract(config, layout))
  sharded = jax.device_put(params_of(config), shardings)
  request = ScoreRequest(entropy=True)
  one, many = (
    scorer.score_rows(params, PROMPTS, RESPONSES, config=config, layout=on, request=request, rows=4)
    for params, on in ((params_of(config), single), (sharded, layout))
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, many)


def test_at_most_one_program_per_bucket(single, params_of):
  config = presets.tiny(norm_epsilon=7e-6)
  before = scorer.score._cache_size()
  rng = np.random.RandomState(0)
  for _ in range(2):
    prompts = [rng.randint(0, 320, rng.randint(1, 100)).tolist() for _ in range(20)]
    responses = [rng.randint(0, 320, rng.randint(0, 100)).tolist() for _ in range(20)]
    scored = scorer.score_rows(params_of(config), prompts, responses, config=config, layout=single)
    assert [len(scores.logp) for scores in scored] == [len(response) for response in responses]
  assert scorer.score._cache_size() - before <= 4  # (64, 128) x (64, 128)


@pytest.mark.parametrize(
  'left, right', [(1100, 5), (2, 2046), (2047, 1), (1024, 1024), (1000, 1000)]
)
def test_rows_that_fit_the_position_table_are_scored(left, right, single, params_of):
  config = presets.tiny(num_layers=1)
  prompt, response = ([1, 2] * 1100)[:left], ([3, 4] * 1100)[:right]
  (scores,) = scorer.score_rows(
    params_of(config), [prompt], [response], config=config, layout=single, rows=1
  )
  want = dense(params_of(config), prompt, response, config=config, layout=single)
  np.testing.assert_allclose(scores.logp, want[np.arange(right), response], atol=1e-4)


def test_what_cannot_be_scored_is_named(single, params_of):
  config = presets.tiny()
  run = lambda prompts, responses, **options: scorer.score_rows(
    params_of(config), prompts, responses, config=config, layout=single, **options
  )
  with pytest.raises(ValueError, match='row 1 has a prompt of 0 tokens'):
    run([[1], []], [[1], [1]])
  with pytest.raises(ValueError, match='2049 in all'):
    run([[1]], [[1] * 2048])
  with pytest.raises(ValueError, match=r'layers \[2\] do not exist'):
    run([[1]], [[1]], request=ScoreRequest(layers=(2,)))
  with pytest.raises(ValueError, match='ids outside 0 to 319'):
    run([[1]], [[320]])
  with pytest.raises(ValueError, match='rows per batch'):
    run([[1]], [[1]], rows=0)
  with pytest.raises(ValueError, match='top_k=321'):
    run([[1]], [[1]], request=ScoreRequest(top_k=321))
