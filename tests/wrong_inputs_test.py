"""Mistakes in an experiment: each is refused in one line before a step is made, in the words of whoever made it.

All of them are made in one process of its own, where nothing but the library checks kinds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUMS = {'TEACHER': '"tiny"', 'STEPS': '1', 'PROMPTS': '4', 'evaluator.Evaluation.problems': '4'}
MINE = {**SUMS, 'DATA': '"rows.jsonl"', 'BUDGET': '8', 'VERIFIER': '@texts.last_number'}
STAGE, EXPERIMENT, FROZEN = 'experiment.Stage.', 'experiment.Experiment.', 'judges.frozen.'
# Bindings over an experiment on sums, and words of the message.
BINDINGS = [
  ('RATE', '"x"', 'rate must be a number above 0'),
  ('RATE', '-1.0', 'rate must be a number above 0'),
  ('RATE', 'None', 'rate must be a number above 0'),
  ('optimisers.adamw.clip', '-1', 'clip must be a number above 0'),
  ('optimisers.adamw.beta1', '2', 'beta1 must lie in [0, 1)'),
  ('optimisers.adamw.warmup', '-1', 'warmup is a whole number'),
  ('STEPS', '0', 'steps must be a whole number above 0'),
  ('STEPS', '"many"', 'steps must be a whole number above 0'),
  ('PROMPTS', '0', 'prompts must be a whole number above 0'),
  ('SAMPLES', '0', 'samples must be a whole number above 0'),
  ('BUDGET', '0', 'budget'),
  ('BUDGET', '2.5', 'budget'),
  ('sampler.Sampling.slots', '0', 'slots'),
  ('sampler.Sampling.segment', '0', 'segment'),
  ('evaluator.Evaluation.every', '-1', 'every must be a whole number of at least 0'),
  ('evaluator.Evaluation.problems', '0', 'problems must be a whole number of at least 1'),
  ('evaluator.Evaluation.samples', '0', 'samples must be a whole number of at least 1'),
  (EXPERIMENT + 'checkpoint_every', '0', 'checkpoint_every must be a whole number above 0'),
  (EXPERIMENT + 'checkpoint_every', '"x"', 'checkpoint_every must be a whole number above 0'),
  (EXPERIMENT + 'samples_every', '0', 'samples_every must be a whole number above 0'),
  (EXPERIMENT + 'seed', '-1', 'seed is a whole number'),
  (EXPERIMENT + 'seed', '1.5', 'seed is a whole number'),
  (EXPERIMENT + 'seed', '"a"', 'seed is a whole number'),
  (EXPERIMENT + 'evaluations', '[1]', 'evaluations must be made by experiment.Evaluation'),
  (EXPERIMENT + 'evaluations', '@evaluator.Evaluation()', 'evaluations is a list'),
  (EXPERIMENT + 'stages', '@experiment.Stage()', 'stages is a list'),
  (EXPERIMENT + 'bounds', '3', 'bounds must be a Bounds'),
  (EXPERIMENT + 'wandb', '3', "wandb must be a str or None, got '3'"),
  (EXPERIMENT + 'rollouts', '3', 'rollouts must be a RolloutRecords'),
  (STAGE + 'name', '""', 'its name is a text that is not empty'),
  (STAGE + 'rows', '0', 'rows must be a whole number above 0'),
  (STAGE + 'template', '3', 'template must be a Template'),
  (STAGE + 'sampling', 'None', 'sampling must be a Sampling'),
  ('WEIGHTS', '3', 'weights must be a str or None'),
  ('WEIGHTS', '""', "hub id or preset is expected, got ''"),
  ('TEACHER', '3', 'weights must be a str or None'),
  ('TEACHER', '""', "hub id or preset is expected, got ''"),
  ('TEACHER', '"nowhere/at/all"', 'nowhere/at/all is not a folder'),
  ('TEACHER', '"empty"', 'empty has no config.json'),
  ('TEACHER', '"a_run"', 'The model of that run is a_run/student'),
  ('METHOD', '@opd.opd', 'method must be a Method'),
  ('METHOD', '3', 'method must be a Method'),
  ('TASK', '@sums.sums', 'task must be a Task'),
  ('MODEL', '@presets.tiny', 'model must be a ModelConfig'),
  ('LAYOUT', '3', 'layout must be a Layout'),
  ('TOKENIZER', 'None', 'training needs a tokenizer'),
  ('TOKENIZER', '5', 'tokenizer must be'),
  (FROZEN + 'layout', '3', 'layout must be a Layout or None'),
  (FROZEN + 'cache', '3', 'cache must be a str or None'),
  (FROZEN + 'template', '3', 'template must be a Template or None'),
  (FROZEN + 'context', '3', 'context must be'),
  (FROZEN + 'dtype', '"int3"', "dtype is 'float32', 'bfloat16', 'float16' or None"),
]
# The same over an experiment on somebody's own rows.
DATA = [
  ('DATA', '3', 'the path of a file is expected'),
  ('DATA', '"gone.jsonl"', 'gone.jsonl cannot be read (No such file or directory)'),
  ('DATA', '"empty"', 'empty cannot be read (Is a directory)'),
  ('DATA', '"array.jsonl"', 'array.jsonl is one JSON array; one object a line is expected'),
  ('DATA', '"one.jsonl"', 'of 1 row none can be held out'),
  ('DATA', '"null.jsonl"', 'line 1: column problem holds null'),
  ('QUESTION', '"prompt"', "it has no 'prompt'"),
  ('ANSWER', '"gold"', "it has no 'gold'"),
  ('VERIFIER', '3', 'verify must be'),
  ('sources.part.fraction', '1', 'fraction must lie between 0 and 1'),
]
PROGRAM = """
import json, sys
from pathlib import Path
from opd_jax.configuration import build
from opd_jax.training import inspection
told = []
for files, bindings in json.load(sys.stdin):
  try:
    experiment, _ = build(files, bindings)
    inspection.check(experiment, lambda text: None)
    if experiment.weights is not None:
      from opd_jax.training.state import first_weights
      first_weights(experiment, lambda text: None)
    told.append('')
  except (ValueError, OSError) as error:
    told.append(str(error))
  except Exception as error:
    told.append(f'Traceback: {error!r}')
print(json.dumps(told))
"""


@pytest.fixture(scope='module')
def told(tmp_path_factory):
  """What is said of every mistake."""
  folder = tmp_path_factory.mktemp('mistakes')
  rows = [{'problem': f'{n}+1=', 'answer': n + 1} for n in range(20)]
  write = lambda name, rows: (folder / name).write_text('\n'.join(map(json.dumps, rows)))
  write('rows.jsonl', rows)
  write('one.jsonl', rows[:1])
  write('array.jsonl', [rows])
  write('null.jsonl', [{**row, 'problem': None} for row in rows])
  (folder / 'empty').mkdir()
  (folder / 'a_run/student').mkdir(parents=True)
  shipped = lambda *names: [str(ROOT / f'experiments/{name}.gin') for name in names]
  sums = shipped('models/tiny', 'data/sums', 'methods/opd', 'judges/teacher')
  (folder / 'bytes.gin').write_text(
    'from __gin__ import dynamic_registration\nfrom opd_jax.data import tokenizers\n'
    'TOKENIZER = @tokenizers.ByteTokenizer()\n'
  )
  mine = [*shipped('models/tiny', 'methods/opd', 'judges/teacher', 'data/jsonl'), 'bytes.gin']
  cases = [
    (files, [f'{key} = {each}' for key, each in {**base, name: value}.items()])
    for files, base, mistakes in ((sums, SUMS, BINDINGS), (mine, MINE, DATA))
    for name, value, _ in mistakes
  ]
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    input=json.dumps(cases),
    capture_output=True,
    text=True,
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr[-2000:]
  names = [f'{name} = {value}' for name, value, _ in [*BINDINGS, *DATA]]
  return dict(zip(names, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize('name, value, words', [*BINDINGS, *DATA], ids=lambda text: text[:30])
def test_a_mistake_is_refused_in_one_line(told, name, value, words):
  message = told[f'{name} = {value}']
  assert words in message and 'Traceback' not in message and '\n' not in message
