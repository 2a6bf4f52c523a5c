"""What a teacher with another tokenizer teaches on the student's own text, by six methods, and one with the student's.

Command  opd study experiments/studies/foreign.py --workdir runs/foreign --jobs 2
Cost     95 runs; about a quarter of an hour with two at a time on two cores

Two worlds of one text and one teacher, which has numbers of two digits as tokens. In `inside` the student has single
characters, so its tokens lie inside the teacher's. In the other one it has signs with a digit behind them, so tokens
cross, and 44 % of its tokens go on behind the end of one of the teacher's: what BPM and GOLD take for rare. `native` is
OPD from a teacher that has seen as much text in the student's tokens. `-closed` closes chunks where both tokens end, as
papers do. All methods have one rate and forty steps, which
is no tuning: the study tells whether each of them teaches, not which is best at its own rate.
"""

import dataclasses

from opd_jax.studies.study import Cell, Contrast, Measure, Study

WORLD, FOREIGN = 'experiments/studies/foreign.gin', 'experiments/judges/foreign.gin'
CLOSED = ('opd', 'dpca', 'alm', 'bpm')  # what is compared inside chunks, or by whole ones
METHODS = ('opd', 'dpca', 'alm', 'bpm', 'gold', 'uld')
STEPS = ('STEPS = 40', 'RATE = 1e-3')
CHARACTERS = 'TOKENIZER = @sums.tokenizer()'
# Prefix of the names of a world's cells: its student, its native teacher, and what else its cells bind.
WORLDS = {
  '': ('student', 'signs', ()),
  'inside-': ('inside', 'characters', (CHARACTERS, 'PROMPTS = 128')),
}


def sft(name: str, *bindings: str, seed: int) -> Cell:
  files, rate = (WORLD,), 'RATE = 3e-3'
  return Cell(name=name, files=files, bindings=(rate, *bindings), seed=seed, seconds=40.0)


def distilled(world: str, method: str) -> Cell:
  student, _, more = WORLDS[world]
  spoken = 'judges.foreign.tokenizer = @sums.numbers()'
  return Cell(
    name=f'{world}{method}',
    files=(WORLD, FOREIGN, f'experiments/methods/{method}.gin'),
    bindings=('TEACHER = "{numbers}"', spoken, f'WEIGHTS = "{{{student}}}"', *STEPS, *more),
    after=('numbers', student),
    seconds=20.0,
  )


def closed(method: str) -> Cell:
  cell = distilled('inside-', method)
  bindings = (*cell.bindings, 'judges.foreign.open_ends = False')
  return dataclasses.replace(cell, name=f'{cell.name}-closed', bindings=bindings)


def native(world: str) -> Cell:
  student, teacher, more = WORLDS[world]
  return Cell(
    name=f'{world}native',
    files=(WORLD, 'experiments/judges/teacher.gin', 'experiments/methods/opd.gin'),
    bindings=(f'TEACHER = "{{{teacher}}}"', f'WEIGHTS = "{{{student}}}"', *STEPS, *more),
    after=(teacher, student),
    seconds=20.0,
  )


def claims(world: str) -> list[Contrast]:
  student, cell = WORLDS[world][0], lambda name: f'{world}{name}'
  gains = [
    Contrast(claim=f'{cell(name)} gains', order=(student, cell(name)))
    for name in ('native', *METHODS)
  ]
  return [
    *gains,
    Contrast(claim=f'{world}native teaches more', order=(cell('opd'), cell('native'))),
    Contrast(claim=f'{world}names beat ranks', order=(cell('uld'), cell('gold'))),
  ]


STUDY = Study(
  paper='Teachers with another tokenizer, on the text of the student',
  cells=(
    sft('numbers', 'STEPS = 400', 'TOKENIZER = @sums.numbers()', seed=0),
    sft('signs', 'STEPS = 400', seed=0),
    sft('student', 'STEPS = 150', seed=2),
    sft('characters', 'STEPS = 400', CHARACTERS, seed=0),
    sft('inside', 'STEPS = 150', CHARACTERS, seed=2),
    *(
      cell for world in WORLDS for cell in (native(world), *(distilled(world, m) for m in METHODS))
    ),
    *map(closed, CLOSED),
  ),
  seeds=(1, 2, 3, 4, 5),
  tuning_seeds=(),
  measures=(
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0, smallest=3.0),
    Measure(name='gradient norm', key='grad_norm', last=10),
  ),
  contrasts=(
    *(claim for world in WORLDS for claim in claims(world)),
    *(
      Contrast(claim=f'open ends help {name}', order=(f'inside-{name}-closed', f'inside-{name}'))
      for name in CLOSED
    ),
  ),
)
