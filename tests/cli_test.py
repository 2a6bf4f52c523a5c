"""`opd`: what it prints, and that every refusal is one readable message with status 2."""

import ast
import errno
import io
import json
import logging
import os
import socket
import subprocess
import sys

import pytest
from conftest import FAMILIES

from opd_jax.models import presets
from opd_jax.sharding import mesh_layout
from opd_jax.storage import huggingface, orbax_folder
from opd_jax.training.workdir import locked

TINY = 'experiments/models/tiny.gin'
COMMANDS = (
  'certify check convert demo evaluate export gap methods new-method params plan report sample '
  'score serve study train'
)


@pytest.mark.parametrize(
  'bindings, words',
  [
    (['presets.tiny.remat = "ful"'], 'ful'),
    (['presets.tiny.remet = "full"'], "ModelConfig has no field ['remet']"),
    (['sharding.mesh_layout.fsbp = 2'], "doesn't have a parameter named 'fsbp'"),
    (['sharding.mesh_layut.fsdp = 2'], 'sharding.mesh_layut'),
    (['presets.qwen9_8b.remat = "full"'], 'qwen9_8b'),
    (['presets.qwen3_8b.remat = "full"'], 'these bindings changed nothing: presets.qwen3_8b.remat'),
    (['LEARNING_RATE = 3', 'STEPS = 4'], 'these bindings changed nothing: LEARNING_RATE, STEPS'),
    (['presets.tiny.width = -4'], 'width must be a whole number above 0, got -4'),
    (['presets.tiny.num_kv_heads = 0'], 'num_kv_heads must be a whole number above 0'),
    (['MODEL = %gin.REQUIRED'], 'MODEL is required and nobody set it'),
    (['sharding.mesh_layout.fsdp = [1'], 'a value does not end'),
    (['sharding.mesh_layout.fsdp = 16'], 'needs 16 devices, 8 cpu device(s) are here'),
    (['sharding.mesh_layout.tensor = 4'], "blocks/attention/key has 2 along 'kv_heads'"),
    (['sharding.mesh_layout.replicate = ("kv_hedas",)'], 'kv_hedas'),
  ],
)
def test_a_refusal_names_what_is_wrong_and_shows_no_traceback(opd, bindings, words):
  flags = [flag for binding in bindings for flag in ('--gin_bindings', binding)]
  status, out, err = opd('plan', '--gin_file', TINY, *flags)
  assert (status, out) == (2, '')
  assert err.startswith('opd plan: ') and words in err and 'Traceback' not in err


def test_a_refusal_of_a_second_run_names_the_command_once(opd, tmp_path):
  files = (TINY, 'experiments/data/sums.gin', 'experiments/methods/sft.gin')
  flags = [flag for file in files for flag in ('--gin_file', file)]
  with locked(tmp_path):
    status, _, err = opd('train', *flags, '--workdir', tmp_path)
  assert status == 2 and err.startswith(f'opd train: another run is at work in {tmp_path}: process')


def test_a_port_in_use_is_refused_before_the_coordinator_dies_of_it(opd):
  with socket.create_server(('', 0)) as taken:
    where = f'127.0.0.1:{taken.getsockname()[1]}'
    flags = ('--coordinator', where, '--processes', '2', '--process', '0')
    status, _, err = opd('train', '--gin_file', TINY, '--workdir', 'nowhere', *flags)
  assert status == 2 and f'--coordinator {where}: port' in err and 'Choose another one' in err


@pytest.mark.parametrize('command', [('train', '--gin_file', TINY), ('evaluate', 'tiny')])
def test_a_cluster_that_is_not_there_is_refused_with_what_was_looked_for(command, pytestconfig):
  """In a process of its own: JAX has begun in this one."""
  clusters = ('JAX_COORDINATOR', 'KUBERNETES_', 'SLURM_', 'OMPI_', 'TPU_WORKER')
  environment = {name: os.environ[name] for name in os.environ if not name.startswith(clusters)}
  words = (*command, '--workdir', 'nowhere', '--distributed')
  done = subprocess.run(
    [sys.executable, '-m', 'opd_jax.cli', *words],
    capture_output=True,
    text=True,
    cwd=pytestconfig.rootpath,
    env=environment,
    timeout=120,
  )
  assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
  assert done.stderr.startswith(f'opd {command[0]}: --distributed: no cluster was found')
  for word in ('Slurm', 'Cloud TPU', 'GKE', 'Kubernetes', 'Open MPI'):
    assert word in done.stderr
  assert '--coordinator HOST:PORT --processes N --process I' in done.stderr


def test_a_cluster_and_explicit_numbers_are_not_mixed(opd):
  flags = ('--distributed', '--processes', '2')
  status, _, err = opd('train', '--gin_file', TINY, '--workdir', 'nowhere', *flags)
  assert status == 2 and 'Leave --coordinator, --processes and --process out' in err


def test_a_full_disk_is_told_in_one_line(opd, monkeypatch, tmp_path):
  def full(*arguments, **options):
    logging.getLogger('absl').error('a writer failed', exc_info=OSError('stack'))
    raise OSError(errno.ENOSPC, 'No space left on device', 'metrics.jsonl')

  monkeypatch.setattr('opd_jax.training.loop.train', full)
  files = [
    f'--gin_file=experiments/{name}.gin' for name in ('models/tiny', 'data/sums', 'methods/sft')
  ]
  status, _, err = opd('train', *files, '--workdir', tmp_path)
  assert status == 2 and err == (
    'opd train: the disk is full (metrics.jsonl). Free some space, then run the same command again.\n'
  )


def test_a_missing_file_and_a_missing_macro_are_refused(opd):
  assert opd('plan')[0] == 2
  status, _, err = opd('plan', '--gin_file', 'nowhere.gin', '--gin_file', TINY)
  assert status == 2 and 'gin file not found: nowhere.gin' in err
  status, _, err = opd('plan', '--gin_file', 'experiments/base.gin')
  assert status == 2 and 'MODEL is required' in err and '--gin_file' in err


def test_a_base_that_is_named_again_takes_nothing_back(opd):
  assert opd('plan', '--gin_file', TINY, '--gin_file', 'experiments/base.gin')[0] == 0


def test_files_that_include_each_other_are_read_once(opd, tmp_path):
  (tmp_path / 'a.gin').write_text("include 'b.gin'\n")
  (tmp_path / 'b.gin').write_text("include 'a.gin'\n")
  assert opd('plan', '--gin_file', TINY, '--gin_file', tmp_path / 'a.gin')[0] == 0


@pytest.mark.parametrize('count', ['0', '-1', '100000'])
def test_an_absurd_number_of_devices_is_refused(opd, count):
  status, _, err = opd('plan', '--gin_file', TINY, '--devices', count)
  assert status == 2 and '--devices must be 1 to 4096' in err


def test_an_include_that_is_missing_is_named(opd, tmp_path):
  (tmp_path / 'mine.gin').write_text("include 'experiments/lost.gin'\n")
  status, _, err = opd('plan', '--gin_file', tmp_path / 'mine.gin')
  assert status == 2 and 'experiments/lost.gin' in err


def test_debug_shows_where_a_refusal_came_from(opd):
  status, _, err = opd('plan', '--gin_file', 'nowhere.gin', '--debug')
  assert status == 2 and 'Traceback' in err and 'nowhere.gin' in err


def test_plan_counts_before_anything_is_allocated(opd, tmp_path):
  files = [
    '--gin_file',
    'experiments/models/qwen3_8b.gin',
    '--gin_file',
    'experiments/layouts/fsdp_tensor.gin',
  ]
  status, out, _ = opd('plan', *files, '--workdir', tmp_path, '--json')
  plan = json.loads(out)
  assert status == 0 and plan['parameters'] == 8_190_735_360
  assert plan['bytes_total'] == 4 * plan['parameters']  # masters
  assert plan['bytes_per_device'] == pytest.approx(plan['bytes_total'] / 8, rel=1e-3)
  assert plan['mesh'] == 'data=1 x fsdp=4 x tensor=2 on 8 cpu devices'
  again = opd('plan', '--gin_file', tmp_path / 'config.gin', '--json')
  assert json.loads(again[1]) == plan  # the written configuration is the whole truth


def test_plan_tells_what_a_stage_holds_without_touching_a_judge(opd):
  names = 'models/qwen3_8b', 'layouts/fsdp', 'data/sums', 'methods/exopd', 'judges/teacher'
  files = [flag for name in names for flag in ('--gin_file', f'experiments/{name}.gin')]
  status, out, _ = opd('plan', *files, '--gin_bindings', 'TEACHER = "nobody/nothing"', '--json')
  plan = json.loads(out)
  held = plan['stages']['train']
  assert (
    status == 0
    and held['parameters'] == held['gradient'] == held['snapshots'] == plan['bytes_per_device']
  )
  assert held['optimiser'] == pytest.approx(2 * held['parameters'], rel=1e-6)  # Adam
  assert held['writer'] == held['parameters'] / 2  # bfloat16


def test_a_binding_that_is_read_through_a_macro_is_not_called_dead(opd):
  status, out, _ = opd(
    'plan', '--gin_file', TINY, '--gin_bindings', 'presets.tiny.num_layers = 4', '--json'
  )
  assert status == 0 and json.loads(out)['model']['num_layers'] == 4


def test_gin_files_are_found_from_any_folder(opd, tmp_path, monkeypatch, pytestconfig):
  monkeypatch.chdir(tmp_path)
  status, _, err = opd('plan', '--gin_file', pytestconfig.rootpath / TINY)
  assert status == 0, err


@pytest.mark.parametrize('name', FAMILIES)
def test_convert_there_and_back_is_byte_equal(opd, tmp_path, name, params_of):
  config = FAMILIES[name](param_dtype='bfloat16')
  huggingface.save(
    tmp_path / 'published', config, mesh_layout(), params_of(config), max_file_bytes=100_000
  )
  (tmp_path / 'published' / 'tokenizer.json').write_text('{}')
  status, out, _ = opd('convert', tmp_path / 'published', tmp_path / 'ours')
  assert status == 0 and 'our folder' in out and orbax_folder.is_native(tmp_path / 'ours')
  assert opd('convert', tmp_path / 'ours', tmp_path / 'again')[0] == 0
  first, second = (huggingface.tensors_of(tmp_path / folder) for folder in ('published', 'again'))
  assert first.keys() == second.keys()
  assert all((first[name].read() == second[name].read()).all() for name in first)
  assert (tmp_path / 'again' / 'tokenizer.json').read_text() == '{}'


def test_convert_changes_the_type_both_ways(opd, tmp_path, params_of):
  config = presets.tiny()
  huggingface.save(tmp_path / 'a', config, mesh_layout(), params_of(config))
  opd('convert', tmp_path / 'a', tmp_path / 'b', '--dtype', 'bfloat16')
  assert orbax_folder.read_config(tmp_path / 'b').param_dtype == 'bfloat16'
  opd('convert', tmp_path / 'b', tmp_path / 'c', '--dtype', 'float32')
  assert {tensor.dtype for tensor in huggingface.tensors_of(tmp_path / 'c').values()} == {'F32'}
  assert json.loads((tmp_path / 'c' / 'config.json').read_text())['torch_dtype'] == 'float32'


def test_convert_refuses_before_it_works(opd, tmp_path, params_of):
  config = presets.tiny()
  huggingface.save(tmp_path / 'a', config, mesh_layout(), params_of(config))
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').touch()
  assert 'not an empty folder' in opd('convert', tmp_path / 'a', tmp_path / 'full')[2]
  assert 'is not a folder' in opd('convert', tmp_path / 'nothing', tmp_path / 'b')[2]
  file = tmp_path / 'a' / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-10])
  status, _, err = opd('convert', tmp_path / 'a', tmp_path / 'b')
  assert status == 2 and 'truncated' in err
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'full']  # nothing is half there


def test_sample_writes_something_reproducible(opd):
  arguments = (
    'sample',
    '--model',
    'tiny',
    '--prompt',
    'a',
    '--prompt',
    'longer',
    '--max_new_tokens',
    '5',
  )
  first, second, other = opd(*arguments), opd(*arguments), opd(*arguments, '--seed', '1')
  assert first[0] == 0 and first[1] == second[1] != other[1]
  assert first[1].count('--- row') == 2 and 'tokens/s' in first[2]


def test_sample_and_score_agree_about_every_token(opd, tmp_path):
  rows = [
    {'text': 'one'},
    {'messages': [{'role': 'user', 'content': 'two'}]},
    {'tokens': [1, 2, 3]},
  ]
  (tmp_path / 'prompts.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
  flags = [
    '--prompts',
    tmp_path / 'prompts.jsonl',
    '--samples',
    '2',
    '--max_new_tokens',
    '6',
    '--top_k',
    '50',
    '--json',
  ]
  status, out, _ = opd('sample', '--model', 'tiny', *flags)
  written = [json.loads(line) for line in out.splitlines()]
  assert status == 0 and sorted(row['row'] for row in written) == list(range(6))
  for row in written:
    assert row.keys() == {
      'row',
      'prompt_tokens',
      'tokens',
      'logps',
      'behaviour_logps',
      'ended_by',
      'text',
    }
    assert all(
      drawn >= plain for drawn, plain in zip(row['behaviour_logps'], row['logps'], strict=True)
    )
  (tmp_path / 'written.jsonl').write_text(out)
  status, scored, _ = opd('score', '--model', 'tiny', '--json', tmp_path / 'written.jsonl')
  assert status == 0
  for row, line in zip(written, scored.splitlines(), strict=True):
    scores = json.loads(line)
    assert scores['score_logps'] == pytest.approx(row['logps'], abs=1e-5)
    assert len(scores['entropies']) == len(row['tokens']) and scores['row'] == row['row']
  assert (
    '--rows must be at least 1'
    in opd('score', '--model', 'tiny', '--rows', '0', tmp_path / 'written.jsonl')[2]
  )
  assert 'perplexity' in opd('score', '--model', 'tiny', tmp_path / 'written.jsonl')[1]


def test_token_prompts_need_no_tokenizer_and_texts_say_that_they_do(opd, tmp_path, params_of):
  config = presets.tiny()
  huggingface.save(tmp_path / 'bare', config, mesh_layout(), params_of(config))
  (tmp_path / 'prompts.jsonl').write_text('{"tokens": [1, 2]}')
  arguments = ('sample', '--model', tmp_path / 'bare', '--max_new_tokens', '3', '--json')
  status, out, _ = opd(*arguments, '--prompts', tmp_path / 'prompts.jsonl')
  assert status == 0 and json.loads(out)['text'] is None and len(json.loads(out)['tokens']) == 3
  status, _, err = opd(*arguments, '--prompt', 'a')
  assert status == 2 and 'needs a tokenizer and the model folder has none' in err


@pytest.mark.parametrize(
  'line, words',
  [
    ('{"tokens": [1', 'line 1: not JSON'),
    ('[1]', 'line 1: list instead of an object'),
    ('{"prompt": "a"}', 'has one of "tokens", "text", "messages"; this one has [\'prompt\']'),
    ('{"tokens": [1, 999]}', "'tokens' must be a list of token ids from 0 to 319"),
    ('{"tokens": []}', 'row 0 has 0 tokens'),
  ],
)
def test_a_bad_prompt_row_is_named_by_file_and_line(opd, tmp_path, line, words):
  (tmp_path / 'prompts.jsonl').write_text(line)
  status, _, err = opd('sample', '--model', 'tiny', '--prompts', tmp_path / 'prompts.jsonl')
  assert status == 2 and words in err


def test_prompts_come_from_standard_input_too(opd, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('hello\n\nworld\n'))
  status, out, _ = opd('sample', '--model', 'tiny', '--max_new_tokens', '2')
  assert status == 0 and out.count('--- row') == 2
  monkeypatch.setattr('sys.stdin', io.StringIO(''))
  assert 'no prompt' in opd('sample', '--model', 'tiny')[2]


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--model', 'huge'], 'neither a folder nor a preset'),
    (['--model', 'tiny', '--temperature', '-1'], 'Temperature: must be above 0'),
    (['--model', 'tiny', '--temperature', 'nan'], 'Temperature: must be above 0 and finite'),
    (['--model', 'tiny', '--top_p', '2'], 'p must lie in (0, 1]'),
    (['--model', 'tiny', '--max_new_tokens', '-1'], 'budget must be at least 0'),
    (['--model', 'tiny', '--samples', '0'], '--samples must be at least 1'),
    (['--model', 'tiny', '--prompts', 'nowhere.jsonl'], 'nowhere.jsonl'),
  ],
)
def test_sample_refuses_what_cannot_be(opd, flags, words):
  status, _, err = opd('sample', '--prompt', 'a', *flags)
  assert status == 2 and words in err and 'Traceback' not in err


def test_methods_prints_a_table_or_json(opd):
  assert opd('methods')[0] == 0
  assert isinstance(json.loads(opd('methods', '--json')[1]), list)


def test_methods_shows_what_one_method_can_be_told(opd):
  status, out, _ = opd('methods', 'opd')
  assert status == 0 and 'opd.opd.coefficient' in out and '1.0' in out and 'log q(y_t)' in out
  shown = json.loads(opd('methods', 'opd', '--json')[1])
  assert shown['arguments'] == {'coefficient': '1.0'} and shown['doc']
  status, _, err = opd('methods', 'opdd')
  assert status == 2 and "no method is called 'opdd'; there are adwin, alm, aopd" in err
  status, _, err = opd('methods', '--module', 'nowhere_at_all')
  assert status == 2 and '--module nowhere_at_all cannot be imported' in err


def test_params_shows_what_gin_may_bind(opd):
  status, out, _ = opd('params')
  assert status == 0 and 'experiment.Stage' in out and 'optimisers.adamw' in out
  status, out, _ = opd('params', 'adamw.rate')
  assert 'from opd_jax.training import optimisers' in out and 'optimisers.adamw.rate' in out
  assert '1e-05' in out and 'learning rate at its peak' in out and 'adamw.clip' not in out
  budgets = {each['name'] for each in json.loads(opd('params', 'budget', '--json')[1])}
  assert {'sampler.Sampling', 'evaluator.Evaluation'} <= budgets
  status, _, err = opd('params', 'adamv')
  assert status == 2 and 'Did you mean adamw?' in err


# --- new-method -------------------------------------------------------------------------------------


def test_a_new_method_comes_with_a_configuration_and_a_test_that_fails(opd, tmp_path, monkeypatch):
  (tmp_path / 'opd_jax' / 'methods').mkdir(parents=True)
  monkeypatch.setattr('opd_jax.commands.new_method.ROOT', tmp_path)
  status, out, _ = opd('new-method', 'soft_opd')
  assert status == 0
  files = [
    f'{folder}/soft_opd{end}'
    for folder, end in (
      ('opd_jax/methods', '.py'),
      ('experiments/methods', '.gin'),
      ('tests/methods', '_test.py'),
    )
  ]
  assert all(file in out and (tmp_path / file).is_file() for file in files)
  method, config, test = ((tmp_path / file).read_text() for file in files)
  tree = ast.parse(method)
  (made,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
  assert made.name == 'soft_opd' and ast.get_docstring(made) and 'VARIANTS' in method
  assert 'METHOD = @soft_opd.soft_opd()' in config and '# Command  opd train' in config
  assert 'raise NotImplementedError' in test and ast.parse(test)
  status, _, err = opd('new-method', 'soft_opd')
  assert status == 2 and 'soft_opd.py is already there' in err
  assert (tmp_path / files[0]).read_text() == method


def test_a_new_method_may_lie_outside_the_package(opd, tmp_path):
  assert opd('new-method', 'mine', '--folder', tmp_path / 'own')[0] == 0
  names = sorted(path.name for path in (tmp_path / 'own').iterdir())
  assert names == ['mine.gin', 'mine.py', 'mine_test.py']
  config = (tmp_path / 'own' / 'mine.gin').read_text()
  assert '\nimport mine\n' in config and 'METHOD = @mine.mine()' in config
  assert f'# Command  PYTHONPATH={tmp_path / "own"} opd train' in config
  status, _, err = opd('new-method', 'json', '--folder', tmp_path)
  assert status == 2 and "a module that exists is called 'json'" in err


@pytest.mark.parametrize(
  'name, words',
  [
    ('my-method', 'no name of a Python function'),
    ('3opd', 'no name of a Python function'),
    ('class', 'a word of Python'),
    ('match', 'a word of Python'),
    ('aopd', 'aopd.py is already there'),
    ('Aopd', 'lower case'),
  ],
)
def test_a_new_method_needs_a_name_that_can_be_one(opd, tmp_path, name, words):
  status, _, err = opd('new-method', name)
  assert status == 2 and words in err


def test_help_names_every_command_and_needs_no_jax():
  """`opd --help` and `opd COMMAND --help` answer at once: nothing heavy is imported for them."""
  code = """
import sys
from opd_jax import cli

for words in ([], *([name] for name in cli.subcommands())):
  try:
    cli.main([*words, '--help'])
  except SystemExit as error:
    assert error.code == 0
assert 'jax' not in sys.modules and 'numpy' not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False
  )
  assert done.returncode == 0, done.stderr
  for command in COMMANDS.split():
    assert f'\n    {command}' in done.stdout and f'usage: opd {command} ' in done.stdout


@pytest.mark.parametrize(
  'binding, words',
  [
    (
      'presets.tiny.remat = "ful"',
      "remat='ful'; choose one of ('none', 'dots', 'full', 'offload')",
    ),
    ('MODEL = @presets.tiny', 'model must be a ModelConfig'),
    ('LAYOUT = 3', 'layout must be a Layout, got 3'),
    ('presets.tiny.vocab_size = 1.5', 'vocab_size must be a whole number above 0, got 1.5'),
  ],
)
def test_without_the_shape_hook_a_value_of_another_kind_is_a_readable_refusal(binding, words):
  """Under the hook the annotation refuses first, so this one runs in a plain interpreter."""
  command = [
    sys.executable,
    '-m',
    'opd_jax.cli',
    'plan',
    '--gin_file',
    TINY,
    '--gin_bindings',
    binding,
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 2, done.stderr
  assert words in done.stderr and 'Traceback' not in done.stderr
