"""Floor 5. The run, from top to bottom: stages, and in each of them sample, score, weigh, update.

The same call resumes: everything that moves is in the checkpoint, so a run that was killed anywhere ends with the same
numbers as one that was not.
"""

import dataclasses
import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from opd_jax.models import transformer
from opd_jax.processes import any_process, to_host
from opd_jax.storage import load
from opd_jax.training import evaluate, metrics, preflight, step
from opd_jax.training.bench import Bench, Responses, abstract, begin
from opd_jax.training.checkpoints import Checkpointer, RunPosition
from opd_jax.training.experiment import Experiment
from opd_jax.training.metrics import Alarm, Recorder
from opd_jax.training.step import Batch, State

SAMPLES = 4  # texts of a look


class Listener(NamedTuple):
  """Who listens to a run."""

  say: Callable[[str], None] = print
  progress: Callable[[int, int, str], None] = lambda done, total, text: None


class Outcome(NamedTuple):
  """How a call ended."""

  state: State
  place: RunPosition
  finished: bool  # False: interrupted, and saved


def train(
  experiment: Experiment,
  workdir: Path,
  *,
  config: str = '',
  ears: Listener | None = None,
  skip_preflight: bool = False,
) -> Outcome:
  """Runs an experiment, or goes on with it.

  Args:
    experiment: the run.
    workdir: where everything is written; a run that is found there is resumed.
    config: the configuration in force, as text: a run is resumed with its own only.
    ears: who listens.
    skip_preflight: begin without looking.
  """
  ears = ears or Listener()
  if not experiment.stages:
    raise ValueError(
      'train: the experiment has no stages. Bind TASK and STEPS, or Experiment.stages.'
    )
  if experiment.model.param_dtype != 'float32':
    raise ValueError(
      f'train: parameters in {experiment.model.param_dtype} would lose small updates to rounding. Bind the model with '
      "param_dtype = 'float32' (the masters) and dtype = 'bfloat16' (what is computed in)."
    )
  prepared(workdir)
  keeper = Checkpointer(
    workdir,
    config=config,
    keep=experiment.checkpoints_kept,
    every=experiment.checkpoint_every,
    say=ears.say,
  )
  try:
    with interrupts() as asked:
      return _run(experiment, workdir, keeper, ears, asked, config, skip_preflight)
  finally:
    keeper.close()


def _run(
  experiment,
  workdir: Path,
  keeper: Checkpointer,
  ears: Listener,
  asked,
  config: str,
  skip_preflight: bool,
) -> Outcome:
  found = keeper.restore(
    lambda place: abstract(
      experiment, experiment.stages[min(place.stage, len(experiment.stages) - 1)]
    )
  )
  state, place = found if found is not None else (None, RunPosition())
  if found is not None:
    ears.say(f'resumed at step {place.step} of {experiment.steps}')
  if jax.process_index() == 0:
    (workdir / 'config.gin').write_text(config)
  recorder = Recorder(
    workdir,
    begin=place.step if found else -1,
    is_writer=jax.process_index() == 0,
    wandb=experiment.wandb,
  )
  params = first_weights(experiment, ears.say) if state is None else state.params
  try:
    while place.stage < len(experiment.stages):
      stage = experiment.stages[place.stage]
      bench = Bench(experiment, stage, ears.say)
      if state is None:
        state = begin(experiment, stage, params)
      if place.stream is not None:
        bench.stream.restore(place.stream)
      bench.look_at(state)
      if place.stage_step == 0 and not skip_preflight:
        state = preflight.check(bench, state, place, ears.say)
      tests = Tests(experiment, bench, recorder)
      if place.step == 0:
        tests.run(state, place)
      while place.stage_step < stage.steps:
        state, place, row = one_step(bench, state, place, recorder, workdir, experiment)
        ears.progress(place.step, experiment.steps, _pace(stage.name, row))
        last = place.stage_step == stage.steps
        if last or (experiment.evaluation and place.step % experiment.evaluation.every == 0):
          tests.run(state, place)
        if place.step % keeper.every == 0 and not last:
          keeper.save(state, place)
        if any_process(asked()):
          keeper.save(state, place)
          keeper.finish()
          ears.say(f'interrupted and saved at step {place.step}; run the same command to go on')
          return Outcome(state, place, finished=False)
      bench = tests = None
      gc.collect()  # judges of this stage leave before those of the next come
      place = RunPosition(stage=place.stage + 1, step=place.step, rows=place.rows)
      if place.stage < len(
        experiment.stages
      ):  # the next stage begins from here, with an optimiser of its own
        state = begin(experiment, experiment.stages[place.stage], state.params)
      keeper.save(state, place)
    keeper.finish()
  finally:
    recorder.close()
  assert state is not None
  return Outcome(state, place, finished=True)


def one_step(
  bench: Bench,
  state: State,
  place: RunPosition,
  recorder: Recorder,
  workdir: Path,
  experiment: Experiment,
) -> tuple[State, RunPosition, Mapping[str, Any]]:
  """One batch of rollouts, from the question to the new weights, and what there is to tell of it."""
  watch = Stopwatch()
  bench.look_at(state)
  with watch('sample'):
    written = bench.sample(place, bench.stream.take(bench.stage.prompts))
  with watch('score'):
    evidence = jax.block_until_ready(bench.score(place, written))
  with watch('weigh'):
    batch, surveyed = jax.block_until_ready(bench.weigh(evidence))
  with watch('update'):
    state, told = bench.update(
      state, batch
    )  # what the batch is told by is this one: the weights that wrote it
    for _ in range(bench.stage.updates - 1):
      state, later = bench.update(state, batch)
      told |= {f'{name}_last': later[name] for name in ('loss', 'grad_norm')}
    number = place.step + 1
    state = bench.follow(state, place.stage_step + 1)
  row = {
    'step': number, 'stage': bench.stage.name, **told,
    **{name: float(value) for name, value in jax.device_get(surveyed).items()},
    **metrics.of_rollout(written.rollout, step=place.step), 'skipped': bench.stream.skipped,
    **watch.seconds, 'time/tokens_per_s': told['tokens'] / watch.total, 'time/compiles': step.compiles(),
  }  # fmt: skip
  recorder.row(row)
  if number % experiment.samples_every == 0 or number == 1:
    recorder.samples(_texts(written, number, bench.stage.name))
  try:
    alarms = metrics.check_alarms(row, place.alarms or {}, experiment.bounds)
  except Alarm as alarm:
    raise Alarm(
      f'{alarm}. The batch lies in {_saved(batch, workdir, number)}; no later checkpoint was written.'
    ) from alarm
  after = place._replace(
    stage_step=place.stage_step + 1, step=number, rows=place.rows + len(written.problems),
    stream=bench.stream.state(), alarms=alarms,
  )  # fmt: skip
  return state, after, row


class Tests:
  """Evaluations of one stage."""

  def __init__(self, experiment: Experiment, bench: Bench, recorder: Recorder):
    self.evaluation, self.bench, self.recorder = experiment.evaluation, bench, recorder
    self.problems = [] if self.evaluation is None else evaluate.problems_of(self.evaluation)

  def run(self, state: State, place: RunPosition) -> None:
    if self.evaluation is None:
      return
    self.bench.look_at(state)
    found, written = evaluate.evaluate(self.bench, self.evaluation, self.problems)
    self.recorder.row({'step': place.step, 'stage': self.bench.stage.name, **found})
    self.recorder.samples(_texts(written, place.step, f'{self.bench.stage.name}, evaluation'))


class Stopwatch:
  """Seconds of each verb."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  @contextmanager
  def __call__(self, verb: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    self.seconds[f'time/{verb}'] = time.monotonic() - began

  @property
  def total(self) -> float:
    return sum(self.seconds.values())


def first_weights(experiment: Experiment, say: Callable[[str], None]) -> Any:
  """The student's weights at the very beginning."""
  if experiment.weights is None:
    return transformer.init(experiment.model, experiment.layout, jax.random.key(experiment.seed))
  say(f'loading the student: {experiment.weights}')
  types: dict[str, Any] = {
    'param_dtype': experiment.model.param_dtype,
    'dtype': experiment.model.dtype,
  }
  loaded = load.model(experiment.weights, experiment.layout, seed=experiment.seed, **types)
  free = ('param_dtype', 'dtype', 'remat', 'unroll', 'begin_token', 'end_tokens', 'pad_token')
  asked_for, found = (dataclasses.asdict(config) for config in (experiment.model, loaded.config))
  if unlike := [name for name in found if name not in free and found[name] != asked_for[name]]:
    listed = ', '.join(f'{name} {found[name]!r} instead of {asked_for[name]!r}' for name in unlike)
    raise ValueError(
      f'train: {experiment.weights} is not the MODEL of this experiment: {listed}. Bind MODEL to what the weights are.'
    )
  return loaded.params


def prepared(workdir: Path) -> None:
  """A folder that can be written."""
  try:
    if jax.process_index() == 0:
      workdir.mkdir(parents=True, exist_ok=True)
      probe = workdir / '.writable'
      probe.write_text('')
      probe.unlink()
  except OSError as error:
    raise ValueError(
      f'train: {workdir} cannot be written ({error.strerror}). Choose another --workdir.'
    ) from error


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
  """Whether somebody asked the run to end: SIGTERM, or ctrl-c once."""
  asked: list[int] = []

  def note(number: int, frame: Any) -> None:
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    asked.append(number)

  try:
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread: somebody else minds the signals
    yield lambda: False
    return
  try:
    yield lambda: bool(asked)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _pace(stage: str, row: Mapping[str, Any]) -> str:
  """How fast a step was, and where its time went."""
  spent = {verb: row[f'time/{verb}'] for verb in ('sample', 'score', 'weigh', 'update')}
  whole = sum(spent.values())
  split = ', '.join(f'{verb} {seconds / whole:.0%}' for verb, seconds in spent.items())
  return f'{stage}: {whole:.2f} s a step ({split}), {row["time/tokens_per_s"]:.0f} tokens/s'


def _texts(written: Responses, number: int, stage: str) -> list[Mapping[str, Any]]:
  return [
    {
      'step': number, 'stage': stage, 'prompt': written.problems[row].messages[-1]['content'],
      'response': written.texts[row], 'reward': _plain(written.rollout.reward[row]),
    }
    for row in range(min(SAMPLES, len(written.texts)))
  ]  # fmt: skip


def _plain(number: Any) -> float | None:
  return None if np.isnan(number) else float(number)


def _saved(batch: Batch, workdir: Path, number: int) -> Path:
  """The batch that rang an alarm, for whoever wants to know why."""
  file = workdir / f'alarm_step{number}.npz'  # every process gathers, one writes
  leaves = {
    jax.tree_util.keystr(path): np.asarray(to_host(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      batch._replace(target=batch.target._replace(head=None))
    )
  }
  if jax.process_index() == 0:
    with open(file, 'wb') as stream:
      np.savez(stream, allow_pickle=False, **leaves)
  return file
