"""The AOPD paper at its own size: every cell is what the paper says, and is planned without network or weights."""

from pathlib import Path

import pytest

from opd_jax.losses.divergences import JensenShannon
from opd_jax.losses.supports import TeacherTopK
from opd_jax.method_reads import reads_of
from opd_jax.planning import memory
from opd_jax.studies import bill
from opd_jax.studies.study import read_study

FILE = Path(__file__).parent.parent.parent / 'experiments' / 'studies' / 'aopd' / 'paper.py'
STUDY = read_study(FILE)
PARAMETERS = {'4b': 4_022_468_096, '8b': 8_190_735_360}


@pytest.fixture(scope='module')
def experiments():
  """Of every cell, by its name."""
  return {cell.name: bill.experiment_of(cell, FILE) for cell in STUDY.cells}


@pytest.fixture(scope='module')
def planned(experiments):
  """What cells hold on eight devices; cells of one model and one kind of state hold the same."""
  plans = {}
  for experiment in experiments.values():
    [stage] = experiment.stages
    kind = (experiment.model, stage.mix, 'reference' in stage.asked)
    if kind not in plans:
      plans[kind] = memory.plan(experiment), memory.held(experiment, stage)
  return plans


def test_every_kind_of_cell_is_planned(planned):
  assert (
    len(planned) == 8
  )  # each size: a data set writes, the teacher, the student, it and a reference
  for (model, mix, remembers), (plan, held) in planned.items():
    assert plan.parameters == PARAMETERS['4b' if model.width == 2560 else '8b']
    assert held.parameters == pytest.approx(
      plan.parameters * 4 / 8, rel=1e-3
    )  # float32 on eight devices
    assert bool(held.writer) == mix.needs_student and bool(held.snapshots) == remembers


def test_batches_steps_and_rates_are_the_papers(experiments):
  for name, experiment in experiments.items():
    [stage] = experiment.stages
    tools, warm = name.endswith('-tools'), name.count('-') == 1
    steps = 40 if tools else {'weak': 1000, 'strong': 3000}[name.split('-')[1]] if warm else 90
    assert (stage.steps, stage.prompts * stage.samples) == (steps, 128 if warm else 512), name
    assert stage.prompts % stage.microbatches == 0
    assert stage.task.name == ('toolalpaca' if tools else 'openthoughts' if warm else 'deepmath')
    assert (stage.template.thinking, stage.sampling.budget) == (
      (False, 1024) if tools else (True, 16384)
    )
    assert [each.label for each in experiment.evaluations] == ['maths'] + ['tools'] * tools
    assert (stage.task.verify is None) == warm


def test_teachers_and_students_are_the_papers(experiments):
  for name, experiment in experiments.items():
    [stage] = experiment.stages
    if name.count('-') == 1:
      assert experiment.weights == f'Qwen/Qwen3-{name[:2].upper()}-Base' and not stage.judges
    else:
      teacher = {'4b': 'Qwen/Qwen3-8B', '8b': 'Qwen/Qwen3-32B'}[name[:2]]
      assert stage.judges['teacher'].weights == teacher
      assert experiment.weights == STUDY.cell(name).after[0]


def test_a_teacher_that_writes_has_fewer_rows_in_flight_than_a_student(experiments):
  slots = {name: each.stages[0].sampling.slots for name, each in experiments.items()}
  assert slots['8b-strong-seqkd'] == 128 and slots['8b-strong-opd'] == 256


@pytest.mark.parametrize('start', ['4b-weak', '8b-strong'])
def test_gkd_is_jensen_shannon_on_the_teachers_top_32_of_the_students_text(start, experiments):
  [stage] = experiments[f'{start}-gkd'].stages
  assert stage.mix.student == 1.0 and stage.method.needs.teacher.top_k == 32
  assert not stage.method.needs.teacher.hidden
  [read] = reads_of(stage.method)
  assert read.term.divergence == JensenShannon(beta=0.5)
  assert read.term.support.entries == TeacherTopK(32)


def test_retention_of_mathematics_is_measured_as_mathematics_was(experiments):
  before, after = (experiments[f'8b-strong-aopd{end}'].evaluations for end in ('', '-tools'))
  same = ('label', 'problems', 'samples', 'budget', 'decoding', 'template')
  assert [getattr(before[0], field) for field in same] == [
    getattr(after[0], field) for field in same
  ]
  assert (before[0].problems, before[0].samples, 4 in before[0].counts) == (90, 16, True)


def test_every_row_of_the_tables_is_printed():
  averages = [one for one in STUDY.printed if one.measure != 'tool calls, %']
  assert len(averages) == 4 * 6 * 2 + 4 + 1 and len(STUDY.printed) == len(averages) + 4
  value = {(one.cell, one.measure): one.value for one in STUDY.printed}
  gain = lambda start: value[f'{start}-aopd', 'Pass@1, %'] - value[f'{start}-opd', 'Pass@1, %']
  assert gain('8b-strong') == pytest.approx(4.09) and gain('8b-weak') == pytest.approx(8.34)
  assert value['8b-strong-aopd-tools', 'Pass@4, %'] > value['8b-strong-aopd', 'Pass@4, %']
