"""Why sampled OPD gains what it gains, and what this world can tell apart: variance or bias, and how many seeds.

Command  opd study experiments/studies/power.py --workdir runs/power --jobs 2
Cost     147 runs; about half an hour with two at a time on two cores

`exact` has the expectation of OPD's gradient at the same prefixes: the whole reverse KL of every position. What it
gains more is what the noise of the sampled advantage costs; where it gains nothing either, the objective is at fault.
The table's `sd` and `seeds needed` are the power calculation.
"""

from opd_jax.studies.study import Cell, Contrast, Measure, Study

WORLD, TEACHER = 'experiments/studies/world.gin', 'experiments/judges/teacher.gin'
STARTS = {'weak': 200, 'strong': 225}  # as in aopd/tiny.py
BOTH = (
  'experiment.Experiment.evaluations = [@evaluator.Evaluation(), @tools/evaluator.Evaluation()]',
  'BUDGET = 80',
)
EXACT = ('gkd.gkd.student_fraction = 1.0', 'gkd.gkd.divergence = @divergences.ReverseKL()')
RATES = (1e-4, 3e-4, 1e-3)
# Name: method, bindings.
WAYS = {
  'opd': ('opd', ()),
  'opd-128': ('opd', ('PROMPTS = 128',)),
  'exact': ('gkd', EXACT),
  'forward': ('gkd', ('gkd.gkd.student_fraction = 1.0', 'gkd.gkd.divergence = @divergences.ForwardKL()')),
}  # fmt: skip


def sft(name: str, steps: int, *more: str, seed: int) -> Cell:
  return Cell(
    name=name,
    files=(WORLD, 'experiments/methods/sft.gin'),
    bindings=(*BOTH, 'TASK = @mixture.mixture()', f'STEPS = {steps}', 'RATE = 3e-3', *more),
    seed=seed,
    seconds=120.0,
  )


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
    sft('teacher', 600, seed=0),
    *(sft(name, steps, 'optimisers.adamw.steps = None', seed=2) for name, steps in STARTS.items()),
    *(distilled(start, name) for start in STARTS for name in WAYS),
  ),
  seeds=(11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22),
  tuning_seeds=(31, 32),
  measures=(
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0, smallest=3.0),
    Measure(name='gradient norm', key='grad_norm', last=10),
  ),
  contrasts=tuple(claim for start in STARTS for claim in claims(start)),
)
