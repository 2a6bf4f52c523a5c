"""The AOPD paper (arXiv:2605.06387) at tiny size: its tables on *sums*, its ablations, and tools after maths.

Command  opd study experiments/studies/aopd/tiny.py --workdir runs/aopd_tiny --jobs 2
Cost     463 runs; about an hour with two at a time on two cores

Signs and orders are compared with the paper's, never levels. The paper's own values of δ are not known to us. K is
2, 4, 8 of 59 tokens where the paper has 8, 16, 32 of 151,936. As in the paper all runs begin with one weak and one
strong student, and differ in what they see and sample.
"""

from opd_jax.studies.study import Cell, Contrast, Measure, Printed, Study

START, WORLD = 'experiments/studies/start.gin', 'experiments/studies/world.gin'
TEACHER = 'experiments/judges/teacher.gin'
# Steps of SFT on sums and calls; the paper has 1,000 and 3,000. A third of the sums are right, and half of them.
STARTS = {'weak': 200, 'strong': 225}
STEPS, TOOL_STEPS, TEACHER_STEPS = 60, 40, 600
BOTH = (
  'experiment.Experiment.evaluations = [@evaluator.Evaluation(), @tools/evaluator.Evaluation()]',
  'BUDGET = 80',
)
SAMPLED, WHOLE = (1e-4, 3e-4, 1e-3), (3e-4, 1e-3, 3e-3)
METHODS = {'seqkd': WHOLE, 'opd': SAMPLED, 'exopd': SAMPLED, 'gkd': WHOLE, 'aopd': SAMPLED}
# The paper distils on the student's own text; GKD alone would take half of its rows from the data set.
MORE = {'gkd': ('gkd.gkd.student_fraction = 1.0',)}
TOOL_RATES = {'opd': (1e-4, 3e-4), 'exopd': (1e-4, 3e-4), 'gkd': (3e-4, 1e-3), 'aopd': (1e-4, 3e-4)}
# Name: method, bindings beside its own, rates.
ABLATIONS = {
  'delta-never': ('aopd', ('aopd.Below.delta = -1.1',), SAMPLED),
  'delta-0.5': ('aopd', ('aopd.Below.delta = -0.5',), SAMPLED),
  'delta-0.1': ('aopd', ('aopd.Below.delta = -0.1',), SAMPLED),
  'delta-always': ('aopd', ('aopd.Below.delta = 1.0',), SAMPLED),
  'zero': ('aopd', ('aopd.aopd.intervene = @aopd.Zero()',), SAMPLED),
  'filter': ('aopd', ('aopd.aopd.intervene = @aopd.BelowWhereWrong()',), SAMPLED),
  'reverse': ('aopd', ('aopd.aopd.divergence = @divergences.ReverseKL()',), SAMPLED),
  'jensen': ('aopd', ('aopd.aopd.divergence = @divergences.JensenShannon()',), SAMPLED),
  'k2': ('aopd', ('aopd.aopd.k = 2',), SAMPLED),
  'k4': ('aopd', ('aopd.aopd.k = 4',), SAMPLED),
  'k8': ('aopd', ('aopd.aopd.k = 8',), SAMPLED),
  # Where the teacher is unsure instead of where it disagrees: EOPD as a switch, closed as AOPD is.
  'entropy-gate': (
    'eopd', ('eopd.eopd.added = False', 'eopd.eopd.k = 32', 'eopd.eopd.rest = @rest_rules.Renormalised()'), SAMPLED,
  ),
}  # fmt: skip
# Pass@1 over AIME24, AIME25 and HMMT25-Feb, Qwen3-8B-Base: SFT, SeqKD, OPD, ExOPD, GKD, AOPD.
TABLE = {
  'weak': (36.53, 26.11, 34.79, 35.41, 40.90, 43.13),
  'strong': (45.90, 38.82, 49.31, 48.20, 49.65, 53.40),
}


def sft(name: str, *bindings: str, seed: int) -> Cell:
  return Cell(name=name, files=(START,), bindings=bindings, seed=seed, seconds=60.0)


def distilled(name: str, start: str, method: str, rates: tuple[float, ...], *bindings: str) -> Cell:
  students = ('TEACHER = "{teacher}"', f'WEIGHTS = "{{{start}}}"')
  return Cell(
    name=name,
    files=(WORLD, TEACHER, f'experiments/methods/{method}.gin'),
    bindings=(*students, *bindings),
    after=('teacher', start),
    rates=rates,
    seconds=15.0,
  )


def on_tools(name: str) -> Cell:
  """Goes on with the student that the same method has made on sums."""
  more = (*BOTH, 'TASK = @calls.calls()', f'STEPS = {TOOL_STEPS}', *MORE.get(name, ()))
  return distilled(f'tools-{name}', f'strong-{name}', name, TOOL_RATES[name], *more)


def claims_of(start: str) -> list[Contrast]:
  """Of the paper's table."""
  order = lambda *names: tuple(f'{start}-{name}' for name in names)
  return [
    Contrast(claim=f'{start}: AOPD beats OPD', order=order('opd', 'aopd')),
    Contrast(claim=f'{start}: AOPD beats ExOPD', order=order('exopd', 'aopd')),
    Contrast(claim=f'{start}: AOPD beats GKD', order=order('gkd', 'aopd')),
    Contrast(claim=f'{start}: AOPD beats SeqKD', order=order('seqkd', 'aopd')),
    Contrast(claim=f'{start}: AOPD gains', order=(start, f'{start}-aopd')),
    Contrast(claim=f'{start}: OPD gains', order=(start, f'{start}-opd')),
  ]


def ablation(claim: str, *names: str, measure: str | None = None, within: float | None = None):
  order = tuple(f'strong-{name}' for name in names)
  return Contrast(claim=claim, order=order, measure=measure, within=within)


def printed(start: str) -> list[Printed]:
  names = (start, *(f'{start}-{name}' for name in METHODS))
  return [
    Printed(
      cell=name,
      measure='accuracy, %',
      value=value,
      metric='Pass@1, mean of three sets',
      problems=90,
      samples=16,
      scale='Qwen3-32B to Qwen3-8B-Base',
      source='Table 1',
    )
    for name, value in zip(names, TABLE[start], strict=True)
  ]


def printed_of_tools() -> list[Printed]:
  one = lambda name, value: Printed(
    cell=f'tools-{name}',
    measure='calls, %',
    value=value,
    metric='success',
    problems=100,
    samples=1,
    scale='Qwen3-32B to Qwen3-8B-Base',
    source='Table 3, ToolAlpaca',
  )
  return [one(*pair) for pair in {'opd': 65.0, 'exopd': 67.0, 'gkd': 76.0, 'aopd': 75.0}.items()]


STUDY = Study(
  paper='Asymmetric on-policy distillation, arXiv:2605.06387, at tiny size',
  cells=(
    sft('teacher', f'STEPS = {TEACHER_STEPS}', 'optimisers.adamw.steps = %STEPS', seed=0),
    *(sft(name, f'STEPS = {steps}', seed=2) for name, steps in STARTS.items()),
    *(
      distilled(f'{start}-{name}', start, name, rates, f'STEPS = {STEPS}', *MORE.get(name, ()))
      for start in STARTS
      for name, rates in METHODS.items()
    ),
    *(
      distilled(f'strong-{name}', 'strong', of, rates, f'STEPS = {STEPS}', *more)
      for name, (of, more, rates) in ABLATIONS.items()
    ),
    *map(on_tools, TOOL_RATES),
  ),
  seeds=tuple(range(1, 13)),
  tuning_seeds=(21, 22),
  measures=(
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0, smallest=3.0),
    Measure(name='calls, %', key='eval/calls/avg@1', scale=100.0, smallest=3.0),
    Measure(name='entropy', key='entropy', last=10),
    Measure(name='gradient norm', key='grad_norm', last=10),
  ),
  contrasts=(
    *(claim for start in STARTS for claim in claims_of(start)),
    ablation('never intervening is OPD', 'opd', 'delta-never', within=3.0),
    ablation('accuracy falls with δ below 0', 'delta-0.5', 'delta-0.1', 'aopd'),
    ablation('OPD < a far δ < Zero < AOPD', 'opd', 'delta-0.5', 'zero', 'aopd'),
    ablation('forward KL beats JSD beats reverse KL', 'reverse', 'jensen', 'aopd'),
    ablation('a larger K is better', 'k2', 'k4', 'k8'),
    ablation('the accuracy filter loses', 'filter', 'aopd'),
    ablation('a gate by advantage beats one by entropy', 'entropy-gate', 'aopd'),
    ablation('AOPD beats imitation everywhere', 'delta-always', 'aopd'),
    ablation('entropy: AOPD above OPD', 'opd', 'aopd', measure='entropy'),
    ablation('gradient norm: AOPD below OPD', 'aopd', 'opd', measure='gradient norm'),
    Contrast(claim='tools: AOPD beats OPD', order=('tools-opd', 'tools-aopd'), measure='calls, %'),
    Contrast(claim='after tools OPD has forgotten sums', order=('tools-opd', 'strong-opd')),
    Contrast(
      claim='after tools AOPD knows its sums', order=('strong-aopd', 'tools-aopd'), within=3.0
    ),
    Contrast(claim='after tools AOPD beats OPD on sums', order=('tools-opd', 'tools-aopd')),
  ),
  printed=(*(one for start in STARTS for one in printed(start)), *printed_of_tools()),
)
