"""A toy study: a teacher, a student of every seed, and what it learns at the better of two rates."""

from opd_jax.studies.study import Cell, Contrast, Measure, Printed, Study

FILES = ('experiments/models/small.gin', 'experiments/data/sums.gin')
TINY = (
  'presets.tiny.width = 32',
  'presets.tiny.num_layers = 1',
  'sums.sums.least = 2',
  'sums.sums.most = 2',
  'sums.sums.largest = 4',
  'PROMPTS = 4',
  'BUDGET = 8',
  'STEPS = 3',
  'experiment.Experiment.checkpoint_every = 1',
  'evaluator.Evaluation.problems = 8',
)
SFT = (*FILES, 'experiments/methods/sft.gin')
OPD = (*FILES, 'experiments/methods/opd.gin', 'experiments/judges/teacher.gin')


def printed(*, measure: str, **values: float) -> tuple[Printed, ...]:
  """What a table prints of some cells."""
  return tuple(
    Printed(
      cell=cell,
      measure=measure,
      value=value,
      metric='Pass@1',
      problems=90,
      samples=16,
      scale='8B',
      source='Table 1',
    )
    for cell, value in values.items()
  )


STUDY = Study(
  paper='toy',
  cells=(
    Cell(name='teacher', files=SFT, bindings=TINY, seed=0, seconds=8.0),
    Cell(name='weak', files=SFT, bindings=TINY, seconds=8.0),
    Cell(
      name='opd',
      files=OPD,
      bindings=(*TINY, 'TEACHER = "{teacher}"', 'WEIGHTS = "{weak}"'),
      after=('teacher', 'weak'),
      rates=(1e-4, 1e-3),
    ),
  ),
  seeds=(1, 2),
  tuning_seeds=(9,),
  measures=(
    Measure(name='length', key='eval/sums/length', smallest=1.0),
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0),
  ),
  contrasts=(
    Contrast(claim='OPD makes responses longer', order=('weak', 'opd')),
    Contrast(claim='OPD makes right', order=('weak', 'opd'), measure='accuracy, %'),
  ),
  printed=printed(measure='accuracy, %', weak=49.3, opd=53.4),
)
