"""The sampler's laws: what is written depends on key, row and position alone; and every way to end is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.data.prompts import left_padded
from opd_jax.inference import decode_programs, sampler
from opd_jax.inference.decode_programs import Recording
from opd_jax.inference.decoding import (
  Decoding,
  Forbid,
  Greedy,
  RepetitionStop,
  Temperature,
  TopK,
)
from opd_jax.inference.guided import Blend
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.models import presets, transformer
from opd_jax.responses import check_fresh
from opd_jax.sharding import mesh_layout
from opd_jax.types import ENDINGS, STUDENT, TEACHER, Prompts

RNG = np.random.RandomState(0)
ROWS = [RNG.randint(0, 320, length).tolist() for length in (3, 1, 9, 20, 5, 5, 2)]
PROMPTS = left_padded(ROWS, width=20, pad=0)
STOPS = Decoding(stop_tokens=tuple(range(40)))  # about one token in eight ends a row


@pytest.fixture
def model(single, params_of):
  config = presets.tiny()
  return Model(config, single, params_of(config))


def run(model, prompts=PROMPTS, seed=0, budgets=None, **settings):
  sampling = Sampling(**{'budget': 24, 'decoding': STOPS, **settings})
  return sampler.generate(model, prompts, jax.random.key(seed), sampling=sampling, budgets=budgets)


def endings(rollout):
  return [ENDINGS[code] for code in rollout.ended_by]


@pytest.mark.parametrize(
  'settings',
  [
    {'slots': 1},
    {'slots': 2, 'segment': 1},
    {'slots': 3, 'segment': 5},
    {'slots': 7, 'chunk': 4},
    {'slots': 64},
  ],
  ids=str,
)
def test_slots_segments_and_chunks_do_not_change_the_text(model, settings):
  want, got = run(model), run(model, **settings)
  np.testing.assert_array_equal(got.response, want.response)
  np.testing.assert_array_equal(got.mask, want.mask)
  np.testing.assert_array_equal(got.ended_by, want.ended_by)
  np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)


def test_neighbours_and_order_do_not_change_the_text(model):
  want = run(model)
  order = np.array([4, 2, 0, 6])
  some = Prompts(*(field[order] for field in PROMPTS))
  got = run(model, some, slots=2)
  np.testing.assert_array_equal(got.response, want.response[order])
  assert not np.array_equal(run(model, seed=1).response, want.response)


def test_samples_of_one_prompt_share_a_prefill_and_differ(model, monkeypatch):
  prompts = left_padded([ROWS[2]] * 6, width=20, pad=0, groups=[0] * 6)
  read = []
  inner = decode_programs.prefill
  monkeypatch.setattr(
    decode_programs,
    'prefill',
    lambda params, tokens, *a, **k: read.append(tokens.shape) or inner(params, tokens, *a, **k),
  )
  rollout = run(model, prompts, slots=2)
  assert read == [(1, 16)]  # once, alone, in its bucket, though the six rows came in over time
  assert len({tuple(row) for row in rollout.response.tolist()}) == 6


def test_the_record_is_that_of_the_distribution_drawn_from(model):
  rollout = run(
    model,
    decoding=Decoding(rules=(Temperature(0.7), TopK(5))),
    recording=Recording(entropy=True, top_k=7),
  )
  for row in range(3):
    tokens = jnp.asarray([ROWS[row] + rollout.response[row].tolist()])
    hidden = transformer.bind(*model)(tokens)
    logits = np.asarray(transformer.logits_of(hidden, transformer.bind(*model).head()))[
      0, len(ROWS[row]) - 1 : -1
    ]
    plain = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(
      rollout.logp[row], plain[np.arange(24), rollout.response[row]], atol=1e-5
    )
    np.testing.assert_allclose(rollout.entropy[row], -(np.exp(plain) * plain).sum(-1), atol=1e-5)
    np.testing.assert_allclose(rollout.top_k.logp[row], -np.sort(-plain, -1)[:, :7], atol=1e-5)
    kept = np.sort(logits, -1)[:, -5:] / 0.7
    tempered = logits[np.arange(24), rollout.response[row]] / 0.7 - np.log(np.exp(kept).sum(-1))
    np.testing.assert_allclose(rollout.behaviour_logp[row], tempered, atol=1e-5)


def test_greedy_writes_the_argmax_with_certainty(model):
  rollout = run(model, decoding=Decoding(rules=(Greedy(),)))
  tokens = jnp.asarray([ROWS[3] + rollout.response[3].tolist()])
  hidden = transformer.bind(*model)(tokens)
  best = transformer.logits_of(hidden, transformer.bind(*model).head())[0].argmax(-1)
  np.testing.assert_array_equal(rollout.response[3], best[len(ROWS[3]) - 1 : -1])
  assert (rollout.behaviour_logp == 0).all()


def test_every_ending_is_told(model, single, params_of):
  short = presets.tiny(max_positions=30)
  rows = left_padded([[1] * 29, [1] * 30, [1, 2], [3, 4]], width=30, pad=0)
  rollout = run(
    Model(short, single, params_of(short)), rows, budgets=[24, 24, 0, 3], decoding=Decoding()
  )
  assert endings(rollout) == ['context', 'context', 'budget', 'budget']
  assert rollout.mask.sum(axis=1).tolist() == [1, 0, 0, 3]
  looping = Decoding(
    rules=(Forbid(tuple(range(1, 320))), Greedy()), repetition=RepetitionStop(periods=(1,), times=4)
  )
  rollout = run(model, decoding=looping)
  assert set(endings(rollout)) == {'repetition'} and set(rollout.mask.sum(axis=1)) == {4}
  assert (rollout.behaviour_logp == 0).all()  # all tokens but one are masked out


def test_a_stop_token_is_written_and_ends_the_row(model):
  rollout = run(model)
  for row, end in enumerate(endings(rollout)):
    written = rollout.response[row][rollout.mask[row]]
    assert not (written[:-1] < 40).any()
    assert (end == 'stop') == (written[-1] < 40)
  assert {'stop'} <= set(endings(rollout))
  at_once = run(model, decoding=Decoding(stop_tokens=tuple(range(320))))
  assert at_once.mask.sum(axis=1).tolist() == [1] * 7 and set(endings(at_once)) == {'stop'}


def test_masks_are_a_run_of_true_and_nothing_is_behind_them(model):
  rollout = run(model, slots=2)
  lengths = rollout.mask.sum(axis=1)
  np.testing.assert_array_equal(rollout.mask, np.arange(24) < lengths[:, None])
  assert not rollout.response[~rollout.mask].any() and not rollout.logp[~rollout.mask].any()
  assert np.isnan(rollout.reward).all()


def test_a_batch_without_work_is_empty(model):
  rollout = run(model, budgets=[0] * 7)
  assert not rollout.mask.any() and set(endings(rollout)) == {'budget'}


@pytest.mark.parametrize(
  'change, words',
  [
    (
      {'prompts': PROMPTS._replace(length=PROMPTS.length * 0)},
      r'prompt of row 0 has 0 tokens, it must have 1 to 2048',
    ),
    ({'budgets': [1]}, r'budgets must be 7 numbers from 0 to 24'),
    ({'budgets': [25] * 7}, 'from 0 to 24'),
    ({'decoding': Decoding(rules=(Forbid(tuple(range(320))),))}, 'the rules left no token'),
    ({'slots': 0}, 'slots must be at least 1'),
    (
      {'prompts': PROMPTS._replace(tokens=PROMPTS.tokens + 320)},
      'row 0 holds token ids outside 0 to 319',
    ),
  ],
)
def test_what_cannot_be_sampled_is_refused(model, change, words):
  with pytest.raises(ValueError, match=words):
    run(model, **change)


@pytest.mark.parametrize('rules', [(), (Greedy(),), (TopK(3),)], ids=str)
def test_nan_weights_are_told_with_row_and_position(model, rules):
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, model.params)
  with pytest.raises(
    ValueError, match=r'no distribution to draw from at position 0 of row \d: the logits hold NaN'
  ):
    run(model._replace(params=broken), decoding=Decoding(rules=rules))


def test_a_stale_rollout_is_refused_unless_its_age_is_corrected_for(model):
  rollout = sampler.generate(
    model, PROMPTS, jax.random.key(0), sampling=Sampling(budget=2), version=3
  )
  check_fresh(rollout, version=3, may_be_older=False)
  check_fresh(rollout, version=5, may_be_older=True)
  with pytest.raises(ValueError, match='weights of version 3 wrote it, those of version 4 are to'):
    check_fresh(rollout, version=4, may_be_older=False)
  for may_be_older in (False, True):  # from the future
    with pytest.raises(ValueError, match='version 3 wrote it, and those of version 2'):
      check_fresh(rollout, version=2, may_be_older=may_be_older)
  theirs = rollout._replace(writer=np.where(rollout.writer == STUDENT, TEACHER, rollout.writer))
  check_fresh(theirs, version=9, may_be_older=False)  # text of others does not age


def test_a_second_model_is_read_at_the_same_position(model, single):
  other = Model(model.config, single, transformer.init(model.config, single, jax.random.key(9)))
  sampling = lambda *rules: Sampling(budget=10, decoding=Decoding(rules=rules))
  write = lambda first, second, *rules: sampler.generate(
    first, PROMPTS, jax.random.key(0), sampling=sampling(*rules), others=[second]
  )
  plain = sampler.generate(other, PROMPTS, jax.random.key(0), sampling=sampling())
  np.testing.assert_array_equal(write(model, other, Blend(1.0)).response, plain.response)
  mixed = write(model, other, Blend(0.5))
  tokens = jnp.asarray([ROWS[2] + mixed.response[2].tolist()])
  logs = []
  for each in (model, other):
    hidden = transformer.bind(*each)(tokens)
    logits = transformer.logits_of(hidden, transformer.bind(*each).head())[0, len(ROWS[2]) - 1 : -1]
    logs.append(jax.nn.log_softmax(logits))
  want = jax.nn.log_softmax(0.5 * logs[0] + 0.5 * logs[1])[np.arange(10), mixed.response[2]]
  np.testing.assert_allclose(mixed.behaviour_logp[2], want, atol=1e-5)
  np.testing.assert_allclose(mixed.logp[2], logs[0][np.arange(10), mixed.response[2]], atol=1e-5)


@pytest.mark.parametrize('sizes', [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}, {'tensor': 8}], ids=str)
def test_eight_devices_write_what_one_does(sizes, single, params_of):
  config, layout = presets.tiny(num_heads=8, num_kv_heads=8), mesh_layout(**sizes)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract(config, layout))
  one = run(Model(config, single, params_of(config)), slots=8)
  many = run(Model(config, layout, jax.device_put(params_of(config), shardings)), slots=8)
  np.testing.assert_array_equal(many.response, one.response)
  np.testing.assert_allclose(many.logp, one.logp, atol=1e-5)


def test_at_most_one_program_per_bucket(single, params_of):
  """Two runs of unlike shapes; the second of each shape compiles nothing."""
  config = presets.tiny(norm_epsilon=9e-6)
  model = sampler.unrolled(Model(config, single, params_of(config)))
  programs = (
    decode_programs.decode,
    decode_programs.admit,
    decode_programs.prefill,
    decode_programs.reshaped,
    decode_programs.vacant,
  )
  sizes = lambda: [program._cache_size() for program in programs]
  before = sizes()
  run(model, slots=4, budget=100)
  first = [after - old for after, old in zip(sizes(), before, strict=True)]
  # columns 64 and 120, slots 4, 2 and 1: never more decode programs than pairs of those
  assert first[0] <= 6 and first[1] <= 4 and first[2] <= 4, first
  middle = sizes()
  for seed in (1, 2):
    run(model, slots=4, budget=100, seed=seed, decoding=STOPS)
  assert sum(sizes()) - sum(middle) <= 3  # a tail may end in a bucket the first run did not see


def test_batches_of_unlike_longest_prompts_share_their_programs(single, params_of):
  config = presets.tiny(norm_epsilon=11e-6)
  model = sampler.unrolled(Model(config, single, params_of(config)))
  sizes = lambda: (
    decode_programs.decode._cache_size(),
    decode_programs.reshaped._cache_size(),
    decode_programs.prefill._cache_size(),
  )
  run(
    model,
    left_padded([[1] * 10, [2] * 3], width=10, pad=0),
    budget=40,
    slots=2,
    decoding=Decoding(),
  )
  first = sizes()
  for longest in (11, 12, 13):
    run(
      model,
      left_padded([[1] * longest, [2] * 3], width=longest, pad=0),
      budget=40,
      slots=2,
      decoding=Decoding(),
    )
  assert sizes() == first


def test_slots_are_refilled_when_there_are_as_many_as_devices(single, params_of):
  """One slot per piece of the batch must not mean static batches."""
  config, layout = presets.tiny(), mesh_layout(fsdp=8)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract(config, layout))
  model = Model(config, layout, jax.device_put(params_of(config), shardings))
  prompts = left_padded([[number + 1] for number in range(32)], width=1, pad=0)
  sampling = Sampling(decoding=STOPS, budget=64, slots=8)
  *_, last = sampler.Run(model, prompts, jax.random.key(0), sampling=sampling).stream()
  assert last.tokens / last.slot_steps > 0.6


def test_bfloat16_logps_agree_with_the_scorer(single, params_of):
  from opd_jax.inference import scorer

  config = presets.tiny(dtype='bfloat16', num_layers=8)
  rollout = run(Model(config, single, params_of(config)), decoding=Decoding())
  scores = scorer.score(
    params_of(config),
    PROMPTS.tokens,
    PROMPTS.length,
    rollout.response,
    config=config,
    layout=single,
  )
  assert 0 < np.abs(rollout.logp - scores.logp).mean() <= 0.01
