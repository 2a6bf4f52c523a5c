"""Every gin file of the house builds, and every binding in it is read."""

from pathlib import Path

import pytest

from opd_jax import configuration
from opd_jax.evaluation.evaluator import Suite

ROOT = Path(__file__).parent.parent / 'experiments'
TINY, SUMS, OPD, TEACHER = (
  str(ROOT / name)
  for name in ('models/tiny.gin', 'data/sums.gin', 'methods/opd.gin', 'judges/teacher.gin')
)
SUITES = sorted((ROOT / 'evaluations').glob('*.gin'))
OWN = {  # what somebody's own files want
  'folder.gin': ['WEIGHTS = "tiny"'],
  'served.gin': ['URL = "http://127.0.0.1:9"'],
  'jsonl.gin': ['DATA = "mine.jsonl"', 'VERIFIER = @texts.exact'],
}
FILES = pytest.mark.parametrize(
  'file',
  sorted(set(ROOT.rglob('*.gin')) - set(SUITES)),
  ids=lambda file: str(file.relative_to(ROOT)),
)


@FILES
def test_every_gin_file_builds_without_a_dead_binding(file):
  bindings = ['TEACHER = "tiny"']
  if file.name == 'served.gin':
    files, bindings = [TINY, SUMS, OPD, str(file)], OWN[file.name]
  elif file.name in OWN:
    files, bindings = [SUMS, TEACHER, OPD, TINY, str(file)], [*bindings, *OWN[file.name]]
  elif file.parent.name in ('models', 'layouts') or file.name == 'base.gin':
    files, bindings = [TINY, str(file)] if file.parent.name != 'models' else [str(file)], []
    if file.name == 'lora.gin':  # stands behind a model
      files = [str(file.parent / 'qwen3_1p7b.gin'), str(file)]
  elif file.parent.name == 'recipes':
    files = [str(file)]
    bindings = bindings if 'TEACHER' in file.read_text() else []
  elif file.parent.name == 'studies':  # a world: cells choose among what it names
    files = [str(file), TEACHER, OPD]
  elif file.parent.name == 'judges' and str(file) != TEACHER:  # the student judges itself
    of_teacher = bindings if 'TEACHER' in file.read_text() else []
    files, bindings = [TINY, SUMS, OPD, str(file)], ['SAMPLES = 2', *of_teacher]
  else:
    others = [SUMS, TEACHER] + ([] if file.parent.name == 'methods' else [OPD])
    files = [TINY, *dict.fromkeys([*others, str(file)])]
  experiment, operative = configuration.build(files, bindings)
  assert experiment.model.num_layers and 'experiment.Experiment.model' in operative
  shapes = file.parent.name in ('models', 'layouts') or file.name == 'base.gin'
  assert bool(experiment.stages) == (not shapes or file.name in OWN)


@pytest.mark.parametrize('file', SUITES, ids=lambda file: file.stem)
def test_every_benchmark_builds_without_a_dead_binding(file):
  suite, operative = configuration.record_of(Suite, [str(file)], ["PROBLEMS = 'here.jsonl'"])
  [evaluation] = suite.evaluations
  assert evaluation.label == evaluation.task.name == file.stem
  assert evaluation.task.verify is not None and "'here.jsonl'" in operative


def test_three_stages_take_at_most_25_lines():
  file = ROOT / 'recipes' / 'three_stages.gin'
  lines = [line for line in file.read_text().splitlines() if line and not line.startswith('#')]
  assert len(lines) <= 25
  experiment, _ = configuration.build([str(file)], ['TEACHER = "tiny"'])
  warm, near, far = experiment.stages
  assert warm.method.paper != near.method.paper == far.method.paper
  assert warm.task == near.task != far.task and far.task.source.largest == 49
  one, other = experiment.evaluations
  assert (one.label, other.label) == ('sums', 'far') and other.task.source.largest == 49


@pytest.mark.parametrize(
  'file',
  sorted(file for file in ROOT.rglob('*.gin') if file.parent.name not in ('layouts', ROOT.name)),
  ids=lambda file: str(file.relative_to(ROOT)),
)
def test_every_gin_file_begins_with_what_it_is_and_how_to_run_it(file):
  first, *rest = file.read_text().splitlines()
  assert first.startswith('# ') and any(line.startswith('# Command  opd ') for line in rest)


@pytest.mark.parametrize(
  'file', sorted((ROOT / 'recipes').glob('*.gin')), ids=lambda file: file.stem
)
def test_a_recipe_says_what_it_costs_at_most(file):
  text = file.read_text()
  experiment, _ = configuration.build([str(file)], ['TEACHER = "tiny"'] * ('TEACHER' in text))
  rows = [stage.steps * stage.prompts * stage.samples for stage in experiment.stages]
  budgets = [stage.sampling.budget for stage in experiment.stages]
  tokens = sum(count * budget for count, budget in zip(rows, budgets, strict=True))
  assert f'# Cost     at most {tokens:,} tokens of responses' in text
