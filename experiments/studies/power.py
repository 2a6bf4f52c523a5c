"""Why sampled OPD gains what it gains, and what this world can tell apart: variance or bias, and how many seeds.

Command  opd study experiments/studies/power.py --workdir runs/power --jobs 2
Cost     99 runs; about a quarter of an hour with two at a time on two cores

`exact` has the expectation of OPD's gradient at the same prefixes: the whole reverse KL of every position. What it
gains more is what the noise of the sampled advantage costs; where it gains nothing either, the objective is at fault.
The table's `sd` and `seeds needed` are the power calculation.
"""

from opd_jax.studies.study import Cell, Contrast, Measure, Study

START, WORLD = 'experiments/studies/start.gin', 'experiments/studies/world.gin'
TEACHER = 'experiments/judges/teacher.gin'
STARTS = {'weak': 200, 'strong': 225}  # as in aopd/tiny.py
EXACT = ('gkd.gkd.student_fraction = 1.0', 'gkd.gkd.divergence = @divergences.ReverseKL()')
RATES = (1e-4, 3e-4, 1e-3)
# Name: method, bindings.
WAYS = {
  'opd': ('opd', ()),
  'opd-128': ('opd', ('PROMPTS = 128',)),
  'exact': ('gkd', EXACT),
  'forward': ('gkd', ('gkd.gkd.student_fraction = 1.0', 'gkd.gkd.divergence = @divergences.ForwardKL()')),
}  # fmt: skip


def sft(name: str, *bindings: str, seed: int) -> Cell:
  return Cell(name=name, files=(START,), bindings=bindings, seed=seed, seconds=60.0)


def distilled(start: str, name: str) -> Cell:
  method, more = WAYS[name]
  return Cell(
    name=f'{start}-{name}',
    files=(WORLD, TEACHER, f'experiments/methods/{method}.gin'),
    bindings=('TEACHER = "{teacher}"', f'WEIGHTS = "{{{start}}}"', 'STEPS = 60', *more),
    after=('teacher', start),
    rates=RATES,
    seconds=15.0,
  )


def claims(start: str) -> list[Contrast]:
  order = lambda *names: tuple(f'{start}-{name}' for name in names)
  return [
    Contrast(claim=f'{start}: OPD gains', order=(start, *order('opd'))),
    Contrast(claim=f'{start}: the exact gradient gains', order=(start, *order('exact'))),
    Contrast(claim=f'{start}: noise costs OPD points', order=order('opd', 'exact')),
    Contrast(claim=f'{start}: twice the rows are worth it', order=order('opd', 'opd-128')),
    Contrast(claim=f'{start}: forward beats reverse', order=order('exact', 'forward')),
  ]


STUDY = Study(
  paper='What the world of the studies can tell apart',
  cells=(
    sft('teacher', 'STEPS = 600', 'optimisers.adamw.steps = %STEPS', seed=0),
    *(sft(name, f'STEPS = {steps}', seed=2) for name, steps in STARTS.items()),
    *(distilled(start, name) for start in STARTS for name in WAYS),
  ),
  seeds=tuple(range(1, 7)),
  tuning_seeds=(31, 32),
  measures=(
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0, smallest=3.0),
    Measure(name='gradient norm', key='grad_norm', last=10),
  ),
  contrasts=tuple(claim for start in STARTS for claim in claims(start)),
)
