"""Floor 5. Opens everything of every stage before step 0 and says what it saw; no weight is loaded.

Each look opens one thing and returns what it saw, or raises with what is wrong. All of them are taken, so that a user
hears of every mistake at once.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.judges import introductions
from opd_jax.judges.build import check_vocabulary, tokenizer_of
from opd_jax.judges.introduction import Introduction
from opd_jax.judges.spec import Served, Single, named_parts
from opd_jax.models.config import ModelConfig
from opd_jax.storage import load, places
from opd_jax.storage.places import Place
from opd_jax.training.apart import apart_judges
from opd_jax.training.asking import bias_of_age, check_stage
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.following import check_gates
from opd_jax.training.rows import StageRows, verdict_on_nothing
from opd_jax.training.state import abstract_state, check_model
from opd_jax.units import bytes_of, memory

Say = Callable[[str], None]
# What tells two rows of a file with the same mistake apart.
LINE = re.compile(r', line \d+')
DETAILS = re.compile(r'(; [\d,]+ rows are bad| \(task |(?<=not JSON) \().*', re.DOTALL)
A_ROW, A_TOKEN = 2**10, 2**4  # bytes at least: a problem and its text; ids, log-probs and masks


class Look(NamedTuple):
  """One thing to open."""

  where: str  # 'run', 'stage NAME', 'evaluation NAME'
  what: str
  open: Callable[[], str]


class Finding(NamedTuple):
  """What a look has seen, or what is wrong."""

  where: str
  what: str
  seen: str
  mistake: str = ''


def check_startable(experiment: Experiment) -> None:
  """Refuses what cannot be trained at all."""
  if not experiment.stages:
    raise ValueError(
      'train: the experiment has no stages. Bind TASK and STEPS, or Experiment.stages.'
    )
  if experiment.lora is None and experiment.model.param_dtype != 'float32':
    raise ValueError(
      f'train: parameters in {experiment.model.param_dtype} would lose small updates to rounding. Bind the model with '
      "param_dtype = 'float32' (the masters) and dtype = 'bfloat16' (what is computed in)."
    )


def inspect(
  experiment: Experiment,
  *,
  workdir: Place | None = None,
  every_row: bool = True,
  status: Say = lambda text: None,
) -> list[Finding]:
  """What every look has seen. A mistake that several of them meet is told once.

  Args:
    experiment: the run.
    workdir: where its checkpoints will be written; None does not look at the disk.
    every_row: whether all rows are read; False reads as many as a batch has.
    status: told how far the reading of rows has come.
  """
  findings: list[Finding] = []
  told: list[str] = []  # what mistakes have in common, whatever row they were met in
  for where, what, open_it in _looks(experiment, workdir, every_row, status):
    try:
      findings.append(Finding(where, what, open_it()))
    except (ValueError, OSError) as error:
      text = str(error).removeprefix(f'{where}: ')
      core = DETAILS.sub('', LINE.sub('', text))
      number = next((at for at, known in enumerate(told, start=1) if core in known), 0)
      mistake = ''
      if not number:
        told.append(core)
        mistake, number = text if where == 'run' else f'{where}: {text}', len(told)
      findings.append(Finding(where, what, f'refused, see mistake {number}', mistake))
  return findings


def refuse(findings: Sequence[Finding]) -> None:
  """Raises with every mistake that was found, a line each."""
  mistakes = [finding.mistake for finding in findings if finding.mistake]
  if len(mistakes) == 1:
    raise ValueError(mistakes[0])
  if mistakes:
    lines = ''.join(f'\n  {number}. {text}' for number, text in enumerate(mistakes, start=1))
    raise ValueError(f'{len(mistakes)} mistakes:{lines}')


def check(experiment: Experiment, say: Say, **options: Any) -> list[Finding]:
  """What was seen; refuses mistakes, and warns of what is only doubtful. For options see `inspect`."""
  findings = inspect(experiment, **options)
  refuse(findings)
  for warning in warnings_of(experiment):
    say(f'warning: {warning}')
  return findings


def warnings_of(experiment: Experiment) -> list[str]:
  """What is doubtful, and yet may be meant."""
  texts = [
    text
    for stage in experiment.stages
    for text in (bias_of_age(stage), _no_overlap(experiment, stage))
  ]
  return [text for text in texts if text is not None]


def _no_overlap(experiment: Experiment, stage: Stage) -> str | None:
  """Older text for nothing."""
  if not stage.staleness or apart_judges(experiment, stage):
    return None
  return (
    f'no judge of stage {stage.name} has devices of its own, so staleness = {stage.staleness} makes its text older and '
    'nothing faster. Bind a layout of the judge, e.g. experiments/judges/teacher_apart.gin, take a served one, or '
    'staleness = 0.'
  )


def _looks(
  experiment: Experiment, workdir: Place | None, every_row: bool, status: Say
) -> Iterator[Look]:
  yield Look('run', 'tokenizer', lambda: _tokenizer(experiment))
  yield Look('run', 'student', lambda: _student(experiment))
  if workdir is not None:
    yield Look('run', 'disk', lambda: _disk(experiment, workdir))
  for stage in experiment.stages:
    yield from _stage_looks(
      experiment, stage, StageRows(experiment, stage, every_row=every_row, status=status)
    )
  for evaluation in experiment.evaluations:
    where = f'evaluation {evaluation.label}'
    yield Look(where, 'problems', lambda each=evaluation: _problems(experiment, each))
    yield Look(where, 'verifier', lambda each=evaluation: _verifier(each))


def _stage_looks(experiment: Experiment, stage: Stage, rows: StageRows) -> Iterator[Look]:
  where = f'stage {stage.name}'
  yield Look(where, 'method', lambda: _method(experiment, stage))
  for name in stage.asked:
    for part, judge in named_parts(name, stage.judges[name]):
      look = lambda name=name, part=part, judge=judge: _judge(experiment, stage, name, part, judge)
      yield Look(where, f'judge {part}', look)
  if (author := stage.author) is not None:
    yield Look(where, 'author', lambda: _introduced(experiment, 'teacher', author).shown)
  yield Look(where, 'batch', lambda: _batch(stage))
  yield Look(where, 'data', rows.data)
  for name in stage.asked:
    yield Look(where, f'room of {name}', lambda name=name: rows.room_of(name))
  yield Look(where, 'verifier', rows.verifier)


def _tokenizer(experiment: Experiment) -> str:
  tokens, rows = len(experiment.known_tokenizer.strings()), experiment.model.vocab_size
  if tokens > rows:
    raise ValueError(
      f'the tokenizer has {tokens} tokens, the student only {rows} rows; they do not belong together.'
    )
  return f'{tokens:,} tokens, the student has {rows:,} rows'


def _student(experiment: Experiment) -> str:
  if experiment.weights is None:
    return f'{_shape(experiment.model)}; random weights of seed {experiment.seed}'
  check_model(experiment, load.config_of(experiment.weights))
  load.check_files(experiment.weights, experiment.layout)
  return f'{_shape(experiment.model)}; {experiment.weights}'


def _shape(config: ModelConfig) -> str:
  return f'{config.num_layers} layers x {config.width}, {config.max_positions:,} positions'


def _disk(experiment: Experiment, workdir: Place) -> str:
  """Checkpoints that are kept, one that is being written, and the student."""
  states = [abstract_state(experiment, stage) for stage in experiment.stages]
  each = max(bytes_of(state.moved) for state in states)
  whole = (experiment.checkpoints_kept + 1) * each + max(bytes_of(state.params) for state in states)
  if not isinstance(workdir, Path):
    return f'{memory(whole)} for checkpoints and the student; a bucket has room'
  have = sum(places.sizes(workdir).values())
  there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.is_dir())
  free, wanted = shutil.disk_usage(there).free, max(whole - have, 0)
  told = f'{memory(wanted)} for checkpoints and the student, {memory(free)} free'
  if wanted > free:
    raise ValueError(
      f'disk: {there} has no room: {told}. Free some, take another --workdir, or keep fewer checkpoints '
      '(experiment.Experiment.checkpoints_kept).'
    )
  return told


def _batch(stage: Stage) -> str:
  """What this process holds of a batch on the host, while it is written and judged."""
  rows = stage.prompts * stage.samples * (1 + stage.staleness)
  bytes_ = rows // jax.process_count() * (A_ROW + A_TOKEN * stage.sampling.budget)
  have = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if bytes_ > have:
    raise ValueError(
      f'batch: {rows:,} rows of {stage.sampling.budget:,} tokens need {memory(bytes_)} on this host, which has '
      f'{memory(have)}. Bind fewer PROMPTS or SAMPLES, or a smaller BUDGET.'
    )
  return f'{rows:,} rows of up to {stage.sampling.budget:,} tokens'


def _method(experiment: Experiment, stage: Stage) -> str:
  check_stage(stage, experiment.model)
  check_gates(stage, experiment.evaluations)
  return stage.method.paper


def _judge(experiment: Experiment, stage: Stage, name: str, part: str, judge: Single) -> str:
  if isinstance(judge, Served):
    found = _introduced(experiment, part, judge)
    introductions.check_answers(part, judge, found, stage.method.needs.judges[name])
    return found.shown
  if judge.weights is None:
    return 'the student itself'
  if judge.is_foreign:
    tokenizer_of(part, judge, experiment.known_tokenizer)
  else:
    check_vocabulary(part, judge.weights, experiment.known_tokenizer, experiment.model)
  load.check_files(judge.weights, judge.layout or experiment.layout)
  where = '' if judge.layout is None else f'; on {judge.layout}'
  return f'{_shape(load.config_of(judge.weights))}; {judge.weights}{where}'


def _introduced(experiment: Experiment, name: str, judge: Served) -> Introduction:
  client = introductions.client_of(name, judge)
  return introductions.introduce(name, judge, client, experiment.known_tokenizer)


def _problems(experiment: Experiment, evaluation: Evaluation) -> str:
  longest = evaluation.check_room(experiment.known_tokenizer, experiment.model.max_positions)
  return f'{len(evaluation.chosen)} problems; prompts of at most {longest} tokens'


def _verifier(evaluation: Evaluation) -> str:
  if evaluation.task.verify is None:
    return 'none: no accuracy is reported'
  return verdict_on_nothing(evaluation.task, evaluation.chosen[0])
