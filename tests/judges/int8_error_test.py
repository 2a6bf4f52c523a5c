"""The divergence that int8 costs, against float64; what a run says of it, and what it saves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.data.templates import Template
from opd_jax.data.tiny_worlds import sums
from opd_jax.judges import int8_error
from opd_jax.judges.local import LocalJudge
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import huggingface, load
from opd_jax.training import loop

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2]]


def published(folder, **overrides):
  config = dataclasses.replace(presets.tiny(), **overrides)
  params = transformer.init(config, mesh_layout(), jax.random.key(7))
  huggingface.save(folder / 'published', config, mesh_layout(), params)
  return str(folder / 'published')


def judge_of(source, loaded):
  """A judge at work that has no need of a tokenizer."""
  return LocalJudge(
    name='teacher',
    spec=judges.frozen(source, int8=True),
    config=loaded.config,
    layout=mesh_layout(),
    home=mesh_layout(),
    columns=loaded.config.vocab_size,
    tokenizer=sums.tokenizer(),
    template=Template(),
    own=loaded.params,
  )


def log_p(params, config, row):
  """Log-probabilities in float64 of what float32 computes."""
  model = transformer.bind(config, mesh_layout(), params)
  logits = np.asarray(
    transformer.logits_of(model(jnp.array([row], jnp.int32)), model.head()), np.float64
  )[0]
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize('form', ['published', 'ours'])
def test_it_is_the_divergence_of_both_models(tmp_path, form):
  source = published(tmp_path) if form == 'published' else runs.teacher_folder(tmp_path)
  whole, rounded = (load.model(source, mesh_layout(), int8=on) for on in (False, True))
  kls = []
  for row in ROWS:
    p, q = (log_p(each.params, each.config, row) for each in (rounded, whole))
    kls.extend((np.exp(p) * (p - q)).sum(axis=-1))
  error = int8_error.measured(judge_of(source, rounded), ROWS)
  assert error is not None and error.tokens == len(kls) == 17
  np.testing.assert_allclose(error.mean, np.mean(kls), rtol=0, atol=2e-6)
  np.testing.assert_allclose(error.most, np.max(kls), rtol=0, atol=2e-6)
  assert 0 < error.mean < 0.05


def size_of(tree):
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_matrices_take_a_quarter_of_float32_and_half_of_bfloat16(tmp_path):
  for dtype, share in (('float32', 0.25), ('bfloat16', 0.5)):
    config = presets.tiny(width=256, mlp_width=1024, vocab_size=24, param_dtype=dtype)
    sizes = [
      size_of(transformer.abstract(each, mesh_layout())['blocks'])
      for each in (dataclasses.replace(config, int8=True), config)
    ]
    assert share < sizes[0] / sizes[1] < share * 1.05


def test_a_run_says_how_far_its_int8_teacher_is_and_learns_from_it(tmp_path):
  said = []
  runs.teacher_folder(tmp_path)
  plain = runs.experiment(tmp_path)
  teacher = {'teacher': judges.frozen(str(tmp_path / 'teacher'), int8=True)}
  experiment = dataclasses.replace(
    plain, stages=(plain.stages[0], dataclasses.replace(plain.stages[1], judges=teacher))
  )
  outcome = runs.run(
    experiment, tmp_path / 'run', listener=loop.Listener(say=said.append), skip_preflight=False
  )
  assert outcome.finished
  [line] = [text for text in said if 'as int8' in text]
  assert line.startswith('teacher as int8: KL to float32 ') and ' nats a token, at most ' in line
  assert ' in place of ' in line


def test_only_weights_of_its_own_are_int8():
  with pytest.raises(ValueError, match='only one with weights of its own is int8'):
    judges.itself(int8=True)


def test_an_int8_student_is_refused(tmp_path):
  with pytest.raises(ValueError, match='LoRA of its own or is int8'):
    runs.experiment(tmp_path, model=dataclasses.replace(runs.CONFIG, int8=True))
