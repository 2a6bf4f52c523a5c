"""The first science: seven methods on *sums* from a weak and a strong student, rates chosen on seeds of their own.

Command  opd study experiments/studies/science.py --workdir runs/science --jobs 2
Cost     169 runs, about an hour with two at a time on two cores
"""

from opd_jax.studies.study import Cell, Contrast, Measure, Study

SFT, *DISTIL = (
  tuple(f'experiments/{name}.gin' for name in ('models/small', 'data/sums', *names))
  for names in (('methods/sft',), ('judges/teacher',))
)
SAMPLED, WHOLE = (3e-5, 1e-4, 3e-4), (3e-4, 1e-3, 3e-3)  # sampled advantages; distributions
RATES = {'opd': SAMPLED, 'exopd': SAMPLED, 'iw_opd': SAMPLED, 'opd_plus': SAMPLED}
RATES |= {'aopd': WHOLE, 'gkd': WHOLE, 'seqkd': WHOLE}
EVALUATED = ('evaluator.Evaluation.problems = 512', 'evaluator.Evaluation.every = 0')


def student(name: str, steps: int, seed: int | None = None) -> Cell:
  return Cell(
    name=name, files=SFT, bindings=(*EVALUATED, f'STEPS = {steps}'), seed=seed, seconds=30.0
  )


def distilled(start: str, method: str) -> Cell:
  bindings = ('STEPS = 60', 'TEACHER = "{teacher}"', f'WEIGHTS = "{{{start}}}"')
  return Cell(
    name=f'{start}-{method}',
    files=(*DISTIL[0], f'experiments/methods/{method}.gin'),
    bindings=(*EVALUATED, *bindings),
    after=('teacher', start),
    rates=RATES[method],
    seconds=40.0,
  )


def claims(start: str) -> list[Contrast]:
  opd, aopd = f'{start}-opd', f'{start}-aopd'
  better = [
    Contrast(claim=f'{start}: {method} beats OPD', order=(opd, f'{start}-{method}'))
    for method in ('exopd', 'iw_opd', 'opd_plus', 'aopd', 'gkd')
  ]
  return [
    Contrast(claim=f'{start}: OPD gains', order=(start, opd)),
    *better,
    Contrast(claim=f'{start}: OPD beats SeqKD', order=(f'{start}-seqkd', opd)),
    Contrast(claim=f'{start}: AOPD stays more diverse', order=(opd, aopd), measure='entropy'),
  ]


STARTS = {'weak': 100, 'strong': 200}
STUDY = Study(
  paper='Seven methods on sums',
  cells=(
    student('teacher', 300, seed=0),
    *(student(name, steps) for name, steps in STARTS.items()),
    *(distilled(start, method) for start in STARTS for method in RATES),
  ),
  seeds=(1, 2, 3, 4, 5),
  tuning_seeds=(6, 7),
  measures=(
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0, smallest=3.0),
    Measure(name='entropy', key='entropy', last=10),
  ),
  contrasts=tuple(claim for start in STARTS for claim in claims(start)),
)
