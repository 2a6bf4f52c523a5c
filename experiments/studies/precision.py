"""Mixed precision: bfloat16 compute with float32 masters against float32, SFT and then AOPD on *sums*.

Command  opd study experiments/studies/precision.py --workdir runs/precision --jobs 2
Cost     21 runs, about ten minutes with two at a time on two cores
"""

from opd_jax.studies.study import Cell, Contrast, Measure, Study

COMMON = ('experiments/models/small.gin', 'experiments/data/sums.gin')
SFT = (*COMMON, 'experiments/methods/sft.gin')
AOPD = (*COMMON, 'experiments/methods/aopd.gin', 'experiments/judges/teacher.gin')
EVALUATED = ('evaluator.Evaluation.problems = 512', 'evaluator.Evaluation.every = 0')
TYPES = ('float32', 'bfloat16')


def cells(dtype: str) -> tuple[Cell, Cell]:
  typed = (*EVALUATED, f"presets.tiny.dtype = '{dtype}'", 'STEPS = 100')
  warm = Cell(name=f'{dtype}-sft', files=SFT, bindings=typed, seconds=30.0)
  students = ('TEACHER = "{teacher}"', f'WEIGHTS = "{{{warm.name}}}"')
  return warm, Cell(
    name=dtype,
    files=AOPD,
    bindings=(*typed, *students),
    after=('teacher', warm.name),
    rates=(3e-4,),
    seconds=60.0,
  )


STUDY = Study(
  paper='bfloat16 with float32 masters',
  cells=(
    Cell(name='teacher', files=SFT, bindings=(*EVALUATED, 'STEPS = 300'), seed=0, seconds=60.0),
    *(cell for dtype in TYPES for cell in cells(dtype)),
  ),
  seeds=(1, 2, 3, 4, 5),
  measures=(
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0, smallest=3.0),
    Measure(name='loss', key='loss', last=10),
    Measure(name='sampler - scorer, nats', key='gap', last=10),
  ),
  contrasts=(Contrast(claim='bfloat16 ends where float32 does', order=TYPES, within=3.0),),
)
