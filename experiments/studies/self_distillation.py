"""The student as its own teacher: what it is shown, how the teacher follows, and what is forgotten.

Command  opd study experiments/studies/self_distillation.py --workdir runs/self_distillation --jobs 2
Cost     239 runs; about an hour with two at a time on two cores

All begin with one student, `reader`, that reads: it gets about half of the sums right by itself and nearly all of them
behind their solution (`told`) or behind their first steps. Without a context it is its own teacher exactly, so
`reader` itself is the control of every context. On long questions, where a chain stands behind two others, `long-none`
is that control. On calls, rates are chosen by the calls: the sums would reward those that learn nothing new. `reader`
never read a failure, so the claims on peers and on steering test prompts that are new to the model. Ablations have the
rate that was the best of the cell that they are compared with.
"""

from opd_jax.studies.study import Cell, Contrast, Measure, Study

READER, ITSELF = 'experiments/studies/reader.gin', 'experiments/studies/itself.gin'
WORLD = 'experiments/studies/world.gin'
RATES = (1e-4, 3e-4, 1e-3)
LIVE, EMA = (f'judges.itself.refresh = @judges.{name}()' for name in ('live', 'ema'))
HINT, SIBLINGS = (f'judges.itself.context = @contexts.{name}()' for name in ('column', 'siblings'))
REVERSE = 'sdpo.sdpo.divergence = @divergences.ReverseKL()'
RICH = "contexts.siblings.feedback = 'without success'"
LONG = 'sums.sums.distractors = 2'
PASSAGE = (
  *(HINT, "contexts.column.name = 'passage'", "contexts.column.introduction = ''"),
  "contexts.column.instead_of = 'document'",
)
GATED = (
  'judges.itself.refresh = @judges.gated()',
  *('judges.gated.by = @gates.RewardRose()', 'gates.RewardRose.apart = 10'),
)
STEERED = (
  "JUDGES = {'teacher': @steering.steered()}",
  *('steering.steered.siblings = %SAMPLES', "steering.steered.introduction = ':'"),
)
TRUSTED = (
  "JUDGES = {'teacher': @steering.trust_region()}",
  *(
    'steering.trust_region.context = @contexts.siblings()',
    'steering.trust_region.rate = 0.05',
    REVERSE,
  ),
)
BY_SOLUTION = (
  "JUDGES = {'teacher': @judges.itself(), 'reference': @bare/judges.itself()}",
  'bare/judges.itself.context = None',
)
TUTORED = (*BY_SOLUTION, HINT)
CALLS = (
  *('TASK = @calls.calls()', 'BUDGET = 80'),
  'experiment.Experiment.evaluations = [@evaluator.Evaluation(), @tools/evaluator.Evaluation()]',
)
# Name: method, bindings beside its own.
CELLS = {
  'solution': ('opsd', ()),
  'solution-whole': ('opsd', ('opsd.opsd.divergence = @divergences.ForwardKL()',)),
  'hint-whole': ('opsd', ('opsd.opsd.divergence = @divergences.ForwardKL()', HINT)),
  'sdft-frozen': ('sdft', ()),
  'sdft-ema': ('sdft', (EMA,)),
  'sdft-live': ('sdft', (LIVE,)),
  'sdft-gated': ('sdft', GATED),
  'scalar': ('sdpo', (SIBLINGS, EMA, REVERSE)),
  'rich': ('sdpo', (SIBLINGS, EMA, REVERSE, RICH)),
  'peers': ('sdpo', (SIBLINGS, EMA, REVERSE, 'contexts.siblings.successes = 2', 'contexts.siblings.failures = 1')),
  'trusted': ('sdpo', TRUSTED),
  'steered': ('ogls', STEERED),
  'grpo': ('ptd_po', (*TUTORED, 'ptd_po.ptd_po.coefficient = 0.0')),
  'ptd-po': ('ptd_po', TUTORED),
  'long-none': ('opd', (LONG, 'judges.itself.context = None', LIVE)),
  'long-passage': ('opd', (LONG, *PASSAGE, LIVE)),
}  # fmt: skip

# Name: rate, method, bindings.
ABLATIONS = {
  'sdft-every': (3e-4, 'sdft', ('judges.itself.refresh = @judges.every()', 'judges.every.steps = 10')),
  'gated-lengths': (3e-4, 'sdft', (*GATED, 'gates.RewardRose.margin = None')),
  'gated-rewards': (3e-4, 'sdft', (*GATED, 'gates.RewardRose.tail = None')),
  'steered-right': (1e-4, 'ogls', (*STEERED, 'steering.steered.failures = False')),
  'steered-whole': (1e-4, 'ogls', (*STEERED, 'ogls.ogls.bound = None')),
  'peers-failure': (1e-4, 'sdpo', (SIBLINGS, EMA, REVERSE, 'contexts.siblings.failures = 1')),
  'peers-success': (1e-4, 'sdpo', (SIBLINGS, EMA, REVERSE, 'contexts.siblings.successes = 2')),
  'ptd-po-solved': (3e-4, 'ptd_po', BY_SOLUTION),
}  # fmt: skip


def itself(
  name: str,
  method: str,
  *bindings: str,
  rates: tuple[float, ...] = RATES,
  chosen_by: str | None = None,
) -> Cell:
  """A student that is its own teacher."""
  return Cell(
    name=name,
    files=(ITSELF, f'experiments/methods/{method}.gin'),
    bindings=('WEIGHTS = "{reader}"', 'STEPS = 60', 'PROMPTS = 16', 'SAMPLES = 4', *bindings),
    after=('reader',),
    rates=rates,
    chosen_by=chosen_by,
    seconds=25.0,
  )


def imitating() -> Cell:
  """SFT on the demonstrations that SDFT is shown."""
  return Cell(
    name='calls-sft',
    files=(WORLD, 'experiments/methods/sft.gin'),
    bindings=('WEIGHTS = "{reader}"', 'STEPS = 60', 'PROMPTS = 64', *CALLS),
    after=('reader',),
    rates=RATES,
    chosen_by='calls, %',
    seconds=25.0,
  )


STUDY = Study(
  paper='Self-distillation under privileged contexts: OPSD, OPSDL, SDFT, SDPO, MOPD',
  cells=(
    Cell(name='reader', files=(READER,), bindings=('STEPS = 360',), seed=2, seconds=120.0),
    *(itself(name, method, *more) for name, (method, more) in CELLS.items()),
    *(
      itself(name, method, *more, rates=(rate,)) for name, (rate, method, more) in ABLATIONS.items()
    ),
    imitating(),
    itself('calls-sdft', 'sdft', EMA, *CALLS, chosen_by='calls, %'),
  ),
  seeds=(1, 2, 3, 4, 5),
  tuning_seeds=(31, 32),
  measures=(
    Measure(name='accuracy, %', key='eval/sums/avg@1', scale=100.0, smallest=3.0),
    Measure(name='calls, %', key='eval/calls/avg@1', scale=100.0, smallest=3.0),
    Measure(name='entropy', key='entropy', last=10),
    Measure(name='told, %', key='eval/told/avg@1', scale=100.0),
  ),
  contrasts=(
    Contrast(claim='a solution is better than nothing', order=('reader', 'solution')),
    Contrast(claim='a hint is better than nothing', order=('reader', 'hint-whole')),
    Contrast(claim='the bound of entries costs nothing', order=('solution-whole', 'solution')),
    Contrast(claim='a demonstration is better than nothing', order=('reader', 'sdft-ema')),
    Contrast(claim='an average is steadier than a live teacher', order=('sdft-live', 'sdft-ema')),
    Contrast(claim='a frozen teacher is as good as an average', order=('sdft-frozen', 'sdft-ema'), within=3.0),
    Contrast(claim='successes are better than nothing', order=('reader', 'scalar')),
    Contrast(claim='a gated teacher beats one that follows every step', order=('sdft-live', 'sdft-gated')),
    Contrast(claim='a trust region is as good as an average', order=('scalar', 'trusted'), within=3.0),
    Contrast(claim='steering by outcomes beats nothing', order=('reader', 'steered')),
    Contrast(claim='steering by outcomes beats a solution', order=('solution', 'steered')),
    Contrast(claim='a hint where it fails makes GRPO better', order=('grpo', 'ptd-po')),
    Contrast(claim='rich feedback beats scalar', order=('scalar', 'rich')),
    Contrast(claim='two successes and a failure beat one success', order=('scalar', 'peers')),
    Contrast(claim='a gate beats a fixed pace', order=('sdft-every', 'sdft-gated')),
    Contrast(claim='a gate by lengths alone is as good', order=('sdft-gated', 'gated-lengths'), within=3.0),
    Contrast(claim='a gate by rewards alone is as good', order=('sdft-gated', 'gated-rewards'), within=3.0),
    Contrast(claim='failures help to steer', order=('steered-right', 'steered')),
    Contrast(claim='the bound of entries helps to steer', order=('steered-whole', 'steered')),
    Contrast(claim='a failure beside a success helps', order=('scalar', 'peers-failure')),
    Contrast(claim='a second success helps', order=('scalar', 'peers-success')),
    Contrast(claim='a hint tutors better than a solution', order=('ptd-po-solved', 'ptd-po')),
    Contrast(claim='short passages teach long questions', order=('long-none', 'long-passage')),
    Contrast(claim='SDFT learns calls', order=('reader', 'calls-sdft'), measure='calls, %'),
    Contrast(claim='SFT learns more of the calls', order=('calls-sdft', 'calls-sft'), measure='calls, %'),
    Contrast(claim='SDFT forgets less of the sums than SFT', order=('calls-sft', 'calls-sdft')),
  ),
)  # fmt: skip
