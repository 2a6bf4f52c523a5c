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
ROWS = {'DATA': '"rows.jsonl"', 'BUDGET': '8', 'VERIFIER': '@texts.last_number'}
MINE = {**SUMS, **ROWS, 'evaluator.Evaluation.problems': '2'}
OWN = {**MINE, 'WEIGHTS': '"own"', 'TEACHER': '"own"', 'load.config.dtype': '"float32"'}
THERE = {
  **{key: value for key, value in SUMS.items() if key != 'TEACHER'},
  'URL': '"http://127.0.0.1:9"',
}
STAGE, EXPERIMENT, FROZEN = 'experiment.Stage.', 'experiment.Experiment.', 'judges.frozen.'
# Bindings over an experiment on sums, and words of the message.
BINDINGS = [
  ('RATE', '"x"', 'rate must be a number above 0'),
  ('RATE', '-1.0', 'rate must be a number above 0'),
  ('RATE', 'None', 'rate must be a number above 0'),
  ('optimisers.adamw.clip', '-1', 'clip must be a number above 0'),
  ('optimisers.adamw.beta1', '2', 'beta1 must lie in [0, 1)'),
  ('optimisers.adamw.warmup', '-1', 'warmup is a whole number'),
  ('STEPS', '0', 'steps must be a whole number of at least 1'),
  ('STEPS', '"many"', 'steps must be a whole number of at least 1'),
  ('PROMPTS', 'True', 'prompts must be a whole number of at least 1, got True'),
  (
    'evaluator.Evaluation.samples',
    'True',
    'samples must be a whole number of at least 1, got True',
  ),
  (STAGE + 'staleness', '-1', 'staleness is a whole number from 0 to'),
  (STAGE + 'staleness', '1.5', 'staleness is a whole number from 0 to'),
  (STAGE + 'staleness', '1000', 'staleness is a whole number from 0 to'),
  (EXPERIMENT + 'sampling_layout', '3', 'sampling_layout must be'),
  ('judges.frozen.tmplate', '3', "it has no option 'tmplate'; it has weights, refresh"),
  ('judges.frozen.int8', '"yes"', 'int8 is True or False'),
  ('judges.frozen.cache', '"gs://b/scores"', 'cache must be a folder of this machine'),
  ('judges.frozen.longest_chunk', '"x"', 'longest_chunk is at least 1'),
  ('PROMPTS', '268435456', 'Bind fewer PROMPTS or SAMPLES, or a smaller BUDGET'),
  ('PROMPTS', '0', 'prompts must be a whole number of at least 1'),
  ('SAMPLES', '0', 'samples must be a whole number of at least 1'),
  ('BUDGET', '0', 'budget'),
  ('BUDGET', '2.5', 'budget'),
  ('sampler.Sampling.slots', '0', 'slots'),
  ('sampler.Sampling.segment', '0', 'segment'),
  ('evaluator.Evaluation.every', '-1', 'every must be a whole number of at least 0'),
  ('evaluator.Evaluation.problems', '0', 'problems must be a whole number of at least 1'),
  ('evaluator.Evaluation.samples', '0', 'samples must be a whole number of at least 1'),
  (EXPERIMENT + 'checkpoint_every', '0', 'checkpoint_every must be a whole number of at least 1'),
  (EXPERIMENT + 'checkpoint_every', '"x"', 'checkpoint_every must be a whole number of at least 1'),
  (EXPERIMENT + 'samples_every', '0', 'samples_every must be a whole number of at least 1'),
  (EXPERIMENT + 'seed', '-1', 'seed is a whole number'),
  (EXPERIMENT + 'seed', '1.5', 'seed is a whole number'),
  (EXPERIMENT + 'seed', '"a"', 'seed is a whole number'),
  (EXPERIMENT + 'evaluations', '[1]', 'evaluations must be made by experiment.Evaluation'),
  (EXPERIMENT + 'evaluations', '@evaluator.Evaluation()', 'evaluations is a list'),
  (EXPERIMENT + 'stages', '@experiment.Stage()', 'stages is a list'),
  (EXPERIMENT + 'bounds', '3', 'bounds must be a Bounds'),
  (EXPERIMENT + 'evaluations', '[...]', 'Unable to parse value'),
  (EXPERIMENT + 'wandb', '3', 'wandb must be a str or None, got 3'),
  (EXPERIMENT + 'rollouts', '3', 'rollouts must be a RolloutRecords'),
  (STAGE + 'name', '""', 'its name is a text that is not empty'),
  (STAGE + 'rows', '0', 'rows must be a whole number of at least 1'),
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
TASK, CONTEXT = 'train/problems.Task.', 'judges.frozen.context'
DATA = [
  ('DATA', '3', 'the path of a file is expected'),
  ('DATA', '"gone.jsonl"', 'gone.jsonl cannot be read (No such file or directory)'),
  ('DATA', '"~/gone.jsonl"', '/gone.jsonl cannot be read (No such file or directory)'),
  ('DATA', '"empty"', 'empty cannot be read (Is a directory)'),
  ('DATA', '"rows.jsonl.gz"', 'rows.jsonl.gz is compressed; unpack it'),
  ('DATA', '"array.jsonl"', 'array.jsonl is one JSON array; one object a line is expected'),
  ('DATA', '"indented.jsonl"', 'indented.jsonl, line 1: not JSON'),
  ('DATA', '"nothing.jsonl"', 'nothing.jsonl holds no rows'),
  ('DATA', '"cut.jsonl"', 'cut.jsonl, line 21: not JSON'),
  ('DATA', '"latin.jsonl"', "latin.jsonl, line 1: 'utf-8' codec can't decode"),
  ('DATA', '"one.jsonl"', 'of 1 row none can be held out'),
  ('DATA', '"null.jsonl"', 'line 8: column problem holds null'),
  ('DATA', '"list.jsonl"', 'line 8: column problem holds list'),
  ('DATA', '"dict.jsonl"', 'line 8: column problem holds dict'),
  ('DATA', '"turns.jsonl"', 'line 8: column problem holds list'),
  ('DATA', '"number.jsonl"', 'line 8: column problem holds int'),
  ('DATA', '"blank.jsonl"', 'line 8: column problem holds an empty text'),
  ('DATA', '"long.jsonl"', 'line 8: prompt and response have 3005 tokens, the position table'),
  ('DATA', '"listed.jsonl"', 'line 8: column answer holds list'),
  ('DATA', '"true.jsonl"', 'line 8: column answer holds bool'),
  ('DATA', '"nan.jsonl"', 'line 8: column answer holds float'),
  ('DATA', '"nobody.jsonl"', 'line 8: column answer holds null'),
  ('QUESTION', '"prompt"', "it has no 'prompt'"),
  ('QUESTION', '3', 'it has no 3'),
  ('ANSWER', '"gold"', "it has no 'gold'"),
  ('DEMONSTRATION', '"trace"', "it has no 'trace'"),
  (TASK + 'on_bad_row', '"drop"', "on_bad_row is 'stop' or 'skip'"),
  (TASK + 'source', '"rows.jsonl"', 'source must be a Source'),
  (TASK + 'read', '3', 'read must be'),
  ('VERIFIER', '3', 'verify must be'),
  ('VERIFIER', '@texts.json_fields', 'its verifier failed on'),
  ('VERIFIER', '@texts.pattern', 'its verifier failed on'),
  ('VERIFIER', '@mine_of_mistakes.nothing', 'its verifier returned None for'),
  ('VERIFIER', '@mine_of_mistakes.words', 'its verifier returned right for'),
  ('VERIFIER', '@mine_of_mistakes.endless', 'its verifier returned inf for'),
  ('VERIFIER', '@mine_of_mistakes.strange', "its verifier returned the outcome 'perhaps'"),
  ('VERIFIER', '@mine_of_mistakes.raises', 'IndexError: string index out of range'),
  ('VERIFIER', '@mine_of_mistakes.one_argument', 'TypeError'),
  ('sources.part.fraction', '1', 'fraction must lie between 0 and 1'),
  ('sources.part.fraction', '"x"', 'fraction must lie between 0 and 1'),
  ('evaluator.Evaluation.problems', '3', '3 problems are asked for, the task has 2'),
  ('evaluator.Evaluation.ks', '[2]', 'ks are whole numbers from 1 to its 1 samples'),
  ('evaluator.Evaluation.budget', '0', 'budget must be a whole number of at least 1'),
  ('evaluator.Evaluation.slots', '0', 'slots must be a whole number of at least 1'),
  ('evaluator.Evaluation.template', '3', 'template must be a Template'),
  ('evaluator.Evaluation.decoding', '3', 'decoding must be a Decoding'),
  ('evaluator.Evaluation.name', '3', 'name must be a str or None'),
  (STAGE + 'samples', '1.0', 'samples must be a whole number of at least 1'),
  (STAGE + 'minibatches', '3', '4 prompts cannot be dealt to 3 minibatches'),
  (CONTEXT, '@contexts.solution', 'the context solution does not take a scene'),
  (CONTEXT, '@contexts.siblings', 'the context siblings does not take a scene'),
  ('JUDGES', '{}', 'these bindings changed nothing: TEACHER'),
  ('JUDGES', "{'techer': @judges.frozen()}", "there is no judge called 'teacher'"),
  ('JUDGES', "{'teacher': 'tiny'}", 'judges must be'),
  ('JUDGES', '[@judges.frozen()]', 'judges must be'),
]
# Over an experiment with a model and a tokenizer of somebody's own.
FOLDERS = [
  (
    'TEACHER',
    '"short"',
    'its position table has 12. Take a judge with a longer table, a BUDGET of',
  ),
  ('TEACHER', '"cut"', 'cut/model.safetensors is truncated or damaged'),
  ('TEACHER', '"settings"', 'settings/config.json is not valid JSON'),
  ('TEACHER', '"pickled"', 'pickled holds pickles only'),
  ('TEACHER', '"tiny"', '320 entries in its vocabulary, the student 128'),
  ('WEIGHTS', '"bare"', 'bare has no tokenizer file that is read without running foreign code'),
  ('WEIGHTS', '"cut"', 'cut/model.safetensors is truncated or damaged'),
  ('WEIGHTS', '"pickled"', 'pickled holds pickles only'),
  ('WEIGHTS', '"~/no/such/folder"', '~/no/such/folder is not a folder'),
  ('WEIGHTS', 'None', "Bind WEIGHTS = '…'"),
  (
    'load.config.source',
    '"tiny"',
    'own is not the MODEL of this experiment: vocab_size 128 instead',
  ),
  ('WEIGHTS', '"loops"', 'the chat template fails (TimeoutError: it did not end within'),
  ('WEIGHTS', '"unended"', 'the chat template has a mistake in line 1'),
  ('WEIGHTS', '"escapes"', 'the chat template does what the sandbox forbids'),
  ('WEIGHTS', '"divides"', 'the chat template fails (ZeroDivisionError'),
  ('WEIGHTS', '"refuses"', 'the chat template refuses this conversation: roles must alternate'),
  ('WEIGHTS', '"chatless"', 'it has no chat template (a base model?)'),
  ('hub_tokenizer.Published.stop_tokens', "['<end>']", "the stop tokens ['<end>'] are not in"),
  ('load.config.dtype', '"int3"', 'int3'),
  ('load.config.param_dtype', '"bfloat16"', 'would lose small updates to rounding'),
]
# Over an experiment whose teacher is behind a server.
SERVED = [
  ('URL', '3', "url is the address of a server, 'http://host:8000', got 3"),
  ('URL', '""', "url is the address of a server, 'http://host:8000', got ''"),
  ('URL', '"127.0.0.1:9"', "url is the address of a server, 'http://host:8000', got '127.0.0.1:9'"),
  (
    'URL',
    '"ftp://host:9"',
    "url is the address of a server, 'http://host:8000', got 'ftp://host:9'",
  ),
  ('URL', '"http://127.0.0.1:9"', 'http://127.0.0.1:9'),
  ('judges.served.modle', '"m"', "it has no option 'modle'; it has url, model"),
  ('judges.served.protocol', '"openai"', "protocol is 'completions' or 'sglang'"),
  ('judges.served.concurrency', '0', 'concurrency must be a number above 0'),
  ('judges.served.concurrency', '1.5', 'concurrency must be a whole number'),
  ('judges.served.timeout', '-1', 'timeout must be a number above 0'),
  ('judges.served.tolerance', '"x"', 'tolerance must be a number above 0'),
  ('judges.served.too_long', '"cut"', "too_long is 'refuse' or 'unknown'"),
]
# gin files of one's own: a text behind the first line, and words of the message.
TEXTS = [
  ('STEPS 3\n', "case.gin, line 2: Couldn't parse statement, expected ':' or '='"),
  ('STEPS = [1,\n', 'case.gin, line 2: a value does not end'),
  ('STEPS = "1\n', 'case.gin, line 2:'),
  ('\nSTEPS = = 3\n', 'case.gin, line 3:'),
  ('SAMPLES = three\n', 'case.gin, line 2:'),
  ('RATE = %NOWHERE\n', 'nobody sets %NOWHERE. Check'),
  ('STEPPS = 3\n', 'these bindings changed nothing: STEPPS'),
  ('sums.sums.largest = 7\n', 'Repeat `from opd_jax.data.tiny_worlds import sums`'),
  ('from opd_jax.data.tiny_worlds import sums\nsums.sums.largets = 7\n', "'largets'"),
  ('from opd_jax.data.tiny_worlds import sums\nTASK = @sums.summs()\n', 'summs'),
  ('from opd_jax import shardings\n', 'case.gin, line 2: there is no opd_jax.shardings'),
  ('import os\n', 'case.gin, line 2: os is not imported'),
  ('import numpy as np\n', 'case.gin, line 2: numpy is not imported'),
  ("include 'lost.gin'\n", 'gin file not found: lost.gin, included by case.gin'),
  ("include 'binary.gin'\n", 'binary.gin: this is not a text file'),
  ("include 'folder.gin'\n", 'gin file is a folder: folder.gin, included by case.gin'),
]
# Command lines of `opd`, in which SUMS stands for the gin files of sums, and words of the message.
COMMANDS = [
  ('train --workdir run', 'no experiment given'),
  ('train SUMS --gin_file binary.gin --workdir run', 'binary.gin: this is not a text file'),
  ('train SUMS --gin_file gone.gin --workdir run', 'gin file not found: gone.gin'),
  ('train SUMS --workdir own', 'own is the folder of a model. Choose another --workdir'),
  ('train SUMS --workdir rows.jsonl', 'rows.jsonl cannot be written (File exists)'),
  ('train SUMS --workdir /proc/run', '/proc/run cannot be written'),
  ('train SUMS --workdir run --processes 2', 'only together with --coordinator'),
  ('train SUMS --workdir run --coordinator here', '--coordinator is HOST:PORT of process 0'),
  ('train SUMS --workdir run --coordinator h:x', '--coordinator is HOST:PORT of process 0'),
  ('train SUMS --workdir run --processes 2 --process 1', 'only together with --coordinator'),
  ('train SUMS --workdir s3://b/run', 'of buckets only gs://… is known here'),
  (
    'distil --student own --teacher own --data rows.jsonl --workdir gs://b/run',
    'gs://b/run is no folder of this machine',
  ),
  ('export gs://b/run out', 'gs://b/run is no folder of this machine'),
  ('score --model empty nowhere.jsonl', 'nowhere.jsonl is no file here'),
  ('check SUMS --module nowhere', '--module nowhere cannot be imported'),
  ('params adamv', 'Did you mean adamw?'),
  ('methods aopdd', "no method is called 'aopdd'"),
  ('export empty out', 'empty'),
  ('sample --model empty --prompt a', 'empty has no config.json'),
]
# What is not a mistake.
RIGHT = [
  ('sums', 'evaluator.Evaluation.every', '0'),
  ('mine', 'DATA', '"~/rows.jsonl"'),
  ('mine', 'VERIFIER', '@texts.exact'),
  ('own', 'DATA', '"control.jsonl"'),
  ('own', 'WEIGHTS', '"~/own"'),
  ('own', 'judges.frozen.too_long', '"unknown"'),
]


def names(kind, mistakes):
  return [(f'{kind}: {name} = {value}', words) for name, value, words in mistakes]


CASES = [
  *names('sums', BINDINGS),
  *names('mine', DATA),
  *names('own', FOLDERS),
  *names('served', SERVED),
  *((f'text: {text}', words) for text, words in TEXTS),
  *((f'opd {line}', words) for line, words in COMMANDS),
]


def case_of(name, files):
  """What the other process is to do."""
  kind, _, what = name.partition(': ')
  if kind == 'text':
    bindings = [f'{key} = {value}' for key, value in SUMS.items()]
    return {'files': [*files['sums'], 'case.gin'], 'bindings': bindings, 'text': what}
  if kind in files:
    key, _, value = what.partition(' = ')
    base = {'sums': SUMS, 'mine': MINE, 'own': OWN, 'served': THERE}[kind]
    return {
      'files': files[kind],
      'bindings': [f'{k} = {v}' for k, v in {**base, key: value}.items()],
    }
  shipped = [word for file in files['sums'] for word in ('--gin_file', file)]
  shipped += [word for k, v in SUMS.items() for word in ('--gin_bindings', f'{k} = {v}')]
  words = [shipped if word == 'SUMS' else [word] for word in name.split()[1:]]
  return {'words': [word for part in words for word in part]}


@pytest.fixture(scope='module')
def told(tmp_path_factory):
  """What is said of every mistake, by its name."""
  folder = tmp_path_factory.mktemp('mistakes')
  shipped = lambda *names: [str(ROOT / f'experiments/{name}.gin') for name in names]
  tiny = ('models/tiny', 'methods/opd', 'judges/teacher')
  files = {
    'sums': shipped('models/tiny', 'data/sums', 'methods/opd', 'judges/teacher'),
    'mine': [*shipped(*tiny, 'data/jsonl'), 'bytes.gin'],
    'served': [*shipped('models/tiny', 'data/sums', 'methods/opd', 'judges/served')],
    'own': shipped('methods/opd', 'judges/teacher', 'data/jsonl', 'models/folder'),
  }
  right = [f'{kind}: {name} = {value}' for kind, name, value in RIGHT]
  listed = [*(name for name, _ in CASES), *right]
  done = subprocess.run(
    [sys.executable, str(ROOT / 'tests/mistakes.py')],
    input=json.dumps([case_of(name, files) for name in listed]),
    capture_output=True,
    text=True,
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT}/tests', 'JAX_PLATFORMS': 'cpu',
         'HOME': str(folder), 'COLUMNS': '200'},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  return dict(zip(listed, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize('name, words', CASES, ids=[name[:60].strip() for name, _ in CASES])
def test_a_mistake_is_refused_in_one_line(told, name, words):
  lines = told[name]
  assert any(words in line for line in lines), lines
  assert not any('Traceback' in line or '\n' in line for line in lines), lines
  assert len(lines) == 1 + name.startswith('opd '), lines
  if name.startswith('opd '):
    assert lines[0].startswith(f'opd {name.split()[1]}: '), lines
    assert lines[1] == 'exit status 2'


@pytest.mark.parametrize('kind, name, value', RIGHT)
def test_what_is_no_mistake_passes(told, kind, name, value):
  assert told[f'{kind}: {name} = {value}'] == []


def test_there_are_as_many_as_a_new_user_made():
  assert len(CASES) >= 127
