"""Every method against OPD with as many tokens, and against its own control: which claims does this world bear out?

Command  opd study experiments/studies/catalogue.py --workdir runs/catalogue --jobs 2
Cost     666 runs; about an hour and a half with two at a time on two cores

All begin with the same student, which gets half of the sums right, and see 60 batches of 16 questions with 4 responses.
A control draws as many tokens (or rows) at random as its method selects. The last claims are those in which the papers
contradict each other.
"""

from pathlib import Path

from opd_jax.studies.study import Cell, Contrast, Measure, Study

START, WORLD = 'experiments/studies/start.gin', 'experiments/studies/world.gin'
TEACHER = 'experiments/judges/teacher.gin'
METHODS = sorted(path.stem for path in (Path(__file__).parent.parent / 'methods').glob('*.gin'))
RATES = (3e-4, 1e-3)
MORE = {
  'adwin': ('adwin.adwin.windows = (8, 16, 32)', 'adwin.adwin.full = 32'),
  'esr': ('esr.esr.tokens = 8',),
}
# The same number of tokens or rows at random, in the words of each method.
CONTROLS = {
  'eopd': 'eopd.eopd.at_random = True',
  'esr': "esr.esr.where = 'random'",
  'f_opd': 'f_opd.f_opd.at_random = True',
  'opdvr': "opdvr.opdvr.gate = 'random'",
  'oprd': 'oprd.oprd.at_random = True',
  'opsa': 'opsa.opsa.at_random = True',
  'renio': 'renio.renio.at_random = True',
  'reopold': 'reopold.reopold.at_random = True',
  'rg_opd': 'rg_opd.rg_opd.at_random = True',
  'sead': 'sead.sead.at_random = True',
  'ta_opd': "ta_opd.ta_opd.by = 'random'",
  'tip': "tip.tip.by = 'random'",
  'topd': "topd.topd.control = 'points'",
}
FULL = 'gkd.gkd.student_fraction = 1.0'
# Name: method, bindings. Sides of the contradictions.
SIDES = {
  'esr-first': ('esr', ('esr.esr.tokens = 8', "esr.esr.where = 'first'")),
  'esr-last': ('esr', ('esr.esr.tokens = 8', "esr.esr.where = 'last'")),
  'exact-reverse': ('gkd', (FULL, 'gkd.gkd.divergence = @divergences.ReverseKL()')),
  'exact-forward': ('gkd', (FULL, 'gkd.gkd.divergence = @divergences.ForwardKL()')),
  'opd_plus-naive': ('opd_plus', ('opd_plus.opd_plus.corrected = False',)),
  'scope-released': ('scope', ('scope.scope.surprising = False',)),
  'opsa-negative': ('opsa', ('opsa.opsa.fixed = -0.5',)),
}


def sft(name: str, *bindings: str, seed: int) -> Cell:
  return Cell(name=name, files=(START,), bindings=bindings, seed=seed, seconds=60.0)


def distilled(name: str, method: str, *more: str) -> Cell:
  return Cell(
    name=name,
    files=(WORLD, TEACHER, f'experiments/methods/{method}.gin'),
    bindings=(
      *('TEACHER = "{teacher}"', 'WEIGHTS = "{student}"', 'STEPS = 60'),
      *('PROMPTS = 16', 'SAMPLES = 4', *MORE.get(method, ()), *more),
    ),
    after=('teacher', 'student'),
    rates=RATES,
    seconds=20.0,
  )


def sides() -> list[Cell]:
  """Without what MORE says already."""
  return [
    distilled(name, of, *(text for text in more if text not in MORE.get(of, ())))
    for name, (of, more) in SIDES.items()
  ]


NAMES = [name for name in METHODS if name not in ('sft', 'opd')]
STUDY = Study(
  paper='The catalogue: every method of the library against OPD and against its control',
  cells=(
    sft('teacher', 'STEPS = 600', 'optimisers.adamw.steps = %STEPS', seed=0),
    sft('student', 'STEPS = 225', seed=2),
    distilled('opd', 'opd'),
    *(distilled(name, name) for name in NAMES),
    *(distilled(f'{name}-random', name, text) for name, text in CONTROLS.items()),
    *sides(),
  ),
  seeds=(1, 2, 3, 4),
  tuning_seeds=(31, 32),
  measures=(
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0, smallest=3.0),
    Measure(name='entropy', key='entropy', last=10),
  ),
  contrasts=(
    Contrast(claim='OPD gains', order=('student', 'opd')),
    Contrast(claim='noise costs OPD points', order=('opd', 'exact-reverse')),
    *(Contrast(claim=f'{name} beats OPD', order=('opd', name)) for name in NAMES),
    *(
      Contrast(claim=f'{name} selects better than chance', order=(f'{name}-random', name))
      for name in CONTROLS
    ),
    Contrast(claim='early tokens teach more than late ones', order=('esr-last', 'esr-first')),
    Contrast(claim='forward beats reverse KL', order=('exact-reverse', 'exact-forward')),
    Contrast(claim='the corrected advantage beats the naive one', order=('opd_plus-naive', 'opd_plus')),
    Contrast(claim='the paper of SCOPE beats its code', order=('scope-released', 'scope')),
    Contrast(claim='a fixed negative advantage is OPD', order=('opd', 'opsa-negative'), within=3.0),
    Contrast(claim='OPD+ for the reverse KL is OPD', order=('opd', 'opd_plus'), within=3.0),
  ),
)  # fmt: skip
