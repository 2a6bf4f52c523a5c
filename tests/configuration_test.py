"""gin: which bindings must be read, what scopes reach, and that a mistake is blamed by file and line."""

import re
import sys

import pytest

from opd_jax.configuration import build

SMALL, SUMS, SFT, TRAIN = (
  f'experiments/{name}.gin' for name in ('models/small', 'data/sums', 'methods/sft', 'train')
)
HEADER = 'from __gin__ import dynamic_registration\n'
WORLD = HEADER + 'from opd_jax.data.tiny_worlds import sums\n'
STAGES = (
  WORLD
  + """\
from opd_jax.methods import opd
from opd_jax.methods import sft
from opd_jax.training import experiment
from opd_jax.training import optimisers
include 'experiments/train.gin'
TASK = @sums.sums()
TOKENIZER = @sums.tokenizer()
experiment.Experiment.stages = [@warm/experiment.Stage(), @distil/experiment.Stage()]
warm/experiment.Stage.name = 'warm'
warm/experiment.Stage.method = @sft.sft()
warm/optimisers.adamw.rate = 1e-3
distil/experiment.Stage.method = @opd.opd()
distil/opd.opd.coefficient = 0.5
"""
)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, pytestconfig):
  monkeypatch.chdir(pytestconfig.rootpath)


@pytest.fixture
def gin_file(tmp_path):
  def write(text, name='mine.gin'):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)

  return write


# --- what must be read ----------------------------------------------------------------------------


def test_stages_with_methods_of_their_own_need_no_shared_method(gin_file):
  """METHOD is required in train.gin; no stage reads it, so nobody has to set it."""
  experiment, _ = build([SMALL, gin_file(STAGES)], [])
  assert [stage.name for stage in experiment.stages] == ['warm', 'train']
  warm, distil = experiment.stages
  assert warm.method.paper != distil.method.paper and warm.task == distil.task


def test_a_shared_method_may_go_unread(gin_file):
  experiment, _ = build([SMALL, SFT, gin_file(STAGES)], [])
  assert len(experiment.stages) == 2


@pytest.mark.parametrize('where', ['included', 'later', 'flag'])
def test_an_evaluation_on_another_task_replaces_the_one_of_a_data_file(gin_file, where):
  own = """\
evaluator.Evaluation.task = @other/sums.sums()
other/sums.sums.split = 'heldout'
other/sums.sums.largest = 7
"""
  imports = WORLD + 'from opd_jax.evaluation import evaluator\n'
  if where == 'included':
    files, bindings = [SMALL, SFT, gin_file(f"{imports}include '{SUMS}'\n{own}")], []
  elif where == 'later':
    files, bindings = [SMALL, SFT, SUMS, gin_file(imports + own)], []
  else:
    files, bindings = [SMALL, SFT, SUMS], own.splitlines()
  experiment, _ = build(files, bindings)
  assert experiment.evaluations[0].task.source.largest == 7
  assert experiment.evaluations[0].task.source.split == 'heldout'


@pytest.mark.parametrize(
  'text, name',
  [
    ('sums.sums.largest = 7\nfar/sums.sums.most = 4\n', 'far/sums.sums.most'),
    ('TYPO = 3\n', 'TYPO'),
    ('MOST = %ELSE\nELSE = 3\n', 'ELSE, MOST'),
    # heldout/ and far/ are the scopes of all calls: what both bind again leaves nothing for the plain binding.
    ("TASK = @far/sums.sums()\nsums.sums.split = 'heldout'\nfar/sums.sums.split = 'train'\n", 'sums.sums.split'),
  ],
)  # fmt: skip
def test_what_the_last_file_itself_binds_must_be_read(gin_file, text, name):
  with pytest.raises(ValueError, match=f'these bindings changed nothing: {re.escape(name)}[.] '):
    build([SMALL, SUMS, SFT, gin_file(WORLD + text)], [])


def test_what_earlier_and_included_files_bind_is_a_default(gin_file):
  early = gin_file(WORLD + 'far/sums.sums.most = 4\nTYPO = 3\n', 'early.gin')
  assert build([SMALL, early, SUMS, SFT], [])
  assert build([gin_file(f"include '{early}'\ninclude '{SMALL}'\n{HEADER}")], [])


def test_a_binding_of_the_last_file_that_only_repeats_a_default_is_still_checked(gin_file):
  early = gin_file(WORLD + 'far/sums.sums.most = 4\n', 'early.gin')
  last = gin_file(WORLD + 'far/sums.sums.most = 4\n')
  with pytest.raises(ValueError, match=r'changed nothing: far/sums\.sums\.most'):
    build([SMALL, early, SUMS, SFT, last], [])


def test_the_command_line_may_replace_what_the_last_file_says_and_must_be_read_itself(gin_file):
  last = gin_file(WORLD + 'TASK = @far/sums.sums()\nfar/sums.sums.largest = 7\nSTEPS = 3\n')
  experiment, _ = build([SMALL, SUMS, SFT, last], ['TASK = @sums.sums()', 'STEPS = 4'])
  assert experiment.stages[0].steps == 4 and experiment.stages[0].task.source.largest == 9
  with pytest.raises(ValueError, match='changed nothing: STEPPS'):
    build([SMALL, SUMS, SFT, last], ['STEPPS = 4'])


def test_a_base_that_was_included_before_it_is_named_is_not_the_last_file():
  assert build([SMALL, SUMS, SFT, TRAIN], [])[0].stages


def test_a_stage_says_who_writes_and_numbers_move(gin_file):
  text = """\
from opd_jax import ramps
from opd_jax import rollouts
from opd_jax.training import experiment
experiment.Stage.rollout = @rollouts.student()
rollouts.student.stop_after = @ramps.Ramp()
ramps.Ramp:
  begin = 8
  end = 40
  steps = 100
"""
  experiment, _ = build([SMALL, SUMS, SFT, gin_file(HEADER + text)], [])
  mix = experiment.stages[0].mix
  assert not mix.needs_teacher and mix.stop_after.at(50) == 24.0


# --- scopes ---------------------------------------------------------------------------------------


def test_a_scope_reaches_what_its_call_calls_and_a_macro_leaves_it(gin_file):
  reached = build([SMALL, gin_file(STAGES)], [])[1]
  assert 'distil/opd.opd.coefficient = 0.5' in reached
  assert 'warm/optimisers.adamw.rate = 0.001' in reached
  shared = STAGES.replace('distil/experiment.Stage.method = ', 'METHOD = ')
  with pytest.raises(ValueError, match=r'changed nothing: distil/opd\.opd\.coefficient'):
    build([SMALL, gin_file(shared)], [])


def test_the_configuration_in_force_builds_the_same_again(gin_file, tmp_path):
  _, text = build([SMALL, gin_file(STAGES)], ['STEPS = 7'])
  assert build([gin_file(text, 'config.gin')], [])[1] == text


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'text, line, words',
  [
    ("include 'experiments/models/small.gin'\n\npresets.tiny.width = = 3\n", 3, 'Unable to parse'),
    (HEADER + "include 'experiments/models/small.gin'\nSTEPS 3\n", 3, "expected ':' or '='"),
    (HEADER + 'from opd_jax import shardings\n', 2, 'shardings'),
    (HEADER + 'from opd_jax import sharding\n\nsharding.mesh_layout.fsbp = 2\n', 4, "'fsbp'"),
    (HEADER + 'a = 1\n  b = 2\n c = 3\n', 4, 'unindent'),
  ],
)
def test_a_bad_line_is_blamed_by_its_file_and_number(gin_file, text, line, words):
  file = gin_file(text)
  with pytest.raises(ValueError, match=rf'(?s)^{re.escape(file)}, line {line}: .*{words}'):
    build([file], [])
  with pytest.raises(ValueError, match=rf'^{re.escape(file)}, line {line}: '):
    build([SMALL, gin_file(f"include '{file}'\n", 'outer.gin')], [])


def test_a_file_that_cannot_be_read_is_named(gin_file, tmp_path):
  with pytest.raises(ValueError, match=r'mine\.gin, line 2: a value does not end'):
    build([gin_file('A = 1\nSTEPS = [1,\n  2,\n\n')], [])
  (tmp_path / 'weights.gin').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(ValueError, match=r'weights\.gin: this is not a text file'):
    build([str(tmp_path / 'weights.gin')], [])
  with pytest.raises(ValueError, match='gin file is a folder: experiments'):
    build(['experiments'], [])
  with pytest.raises(ValueError, match=r'gin file not found: lost\.gin, included by .*mine\.gin'):
    build([gin_file("include 'lost.gin'  # isn't here\n")], [])


def test_an_import_of_another_file_is_pointed_at_and_never_denied(gin_file):
  with pytest.raises(
    ValueError,
    match=r'Repeat `from opd_jax\.data\.tiny_worlds import sums` of experiments/data/sums\.gin in .*mine\.gin',
  ):
    build([SMALL, SUMS, gin_file(HEADER + 'sums.sums.largest = 7\n')], [])
  with pytest.raises(ValueError, match=r'No gin file given imports it: .* in .*mine\.gin'):
    build([SMALL, gin_file(HEADER + 'judge.spec.largest = 7\n')], [])
  with pytest.raises(
    ValueError, match=r'--gin_bindings: .* None of the gin files given imports it'
  ):
    build([SMALL], ['judge.spec.largest = 7'])
  with pytest.raises(ValueError, match=r'The first statement of .*mine\.gin must be'):
    build([SMALL, gin_file('from opd_jax.data.tiny_worlds import sums\nsumsums.largest = 7\n')], [])


@pytest.mark.parametrize(
  'missing, folder', [('METHOD', 'methods'), ('TASK', 'data'), ('TOKENIZER', 'data')]
)
def test_a_required_macro_that_is_read_is_named_with_where_to_find_it(missing, folder):
  values = {'METHOD': '@sft.sft()', 'TASK': '@sums.sums()', 'TOKENIZER': '@sums.tokenizer()'}
  given = [f'{name} = {value}' for name, value in values.items() if name != missing]
  with pytest.raises(ValueError, match=rf'{missing} is required .*\(experiments/{folder}/\)'):
    # The last two files give imports; what they set is taken back.
    build([SMALL, SUMS, SFT], [*given, f'{missing} = %gin.REQUIRED'])


def test_a_method_of_a_file_in_the_working_directory_works(
  gin_file, tmp_path, monkeypatch, pytestconfig
):
  includes = '\n'.join(f"include '{pytestconfig.rootpath / file}'" for file in (SMALL, SUMS))
  (tmp_path / 'mine_of_cwd.py').write_text(
    'from opd_jax.methods import sft\n\n\ndef mine_of_cwd(*, loud: bool = False):\n  return sft.sft()\n'
  )
  method = 'METHOD = @mine_of_cwd.mine_of_cwd()\nmine_of_cwd.mine_of_cwd.loud = True\n'
  file = gin_file(f'{HEADER}import mine_of_cwd\n{includes}\n{method}')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    sys, 'path', [entry for entry in sys.path if entry]
  )  # as the script `opd` has it
  assert build([file], [])[0].stages[0].method.paper


def test_a_mixture_of_scoped_tasks_is_bound_from_gin(gin_file):
  text = """\
from opd_jax.data import mixture
TASK = @mixture.mixture()
mixture.mixture:
  tasks = {'short': @sums.sums(), 'long': @long/sums.sums()}
  weights = {'short': 3, 'long': 1}
long/sums.sums.most = 7
"""
  experiment, _ = build([SMALL, SFT, SUMS, gin_file(WORLD + text)], [])
  source = experiment.stages[0].task.source
  assert [source[number]['task'] for number in range(4)].count('long') == 1
