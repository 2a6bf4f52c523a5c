"""Floor 5. Opens everything of every stage before step 0 and says what it saw; no weight is loaded.

Each look opens one thing and returns what it saw, or raises with what is wrong. All of them are taken, so that a user
hears of every mistake at once.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.judges.build import check_vocabulary
from opd_jax.judges.spec import Judge, named_parts
from opd_jax.models.config import ModelConfig
from opd_jax.storage import load
from opd_jax.training.asking import bias_of_updates, check_stage
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.following import check_gates
from opd_jax.training.rows import StageRows, verdict_on_nothing
from opd_jax.training.state import abstract_state, check_model

Say = Callable[[str], None]


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
  experiment: Experiment, *, workdir: Path | None = None, every_row: bool = True
) -> list[Finding]:
  """What every look has seen. A mistake that several of them meet is told once.

  Args:
    experiment: the run.
    workdir: where its checkpoints will be written; None does not look at the disk.
    every_row: whether all rows are read; False reads as many as a batch has.
  """
  findings: list[Finding] = []
  told: dict[str, int] = {}
  for where, what, open_it in _looks(experiment, workdir, every_row):
    try:
      findings.append(Finding(where, what, open_it()))
    except (ValueError, OSError) as error:
      text = str(error).removeprefix(f'{where}: ')
      mistake = '' if text in told else text if where == 'run' else f'{where}: {text}'
      number = told.setdefault(text, len(told) + 1)
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
  return [text for stage in experiment.stages if (text := bias_of_updates(stage)) is not None]


def _looks(experiment: Experiment, workdir: Path | None, every_row: bool) -> Iterator[Look]:
  yield Look('run', 'tokenizer', lambda: _tokenizer(experiment))
  yield Look('run', 'student', lambda: _student(experiment))
  if workdir is not None:
    yield Look('run', 'disk', lambda: _disk(experiment, workdir))
  for stage in experiment.stages:
    yield from _stage_looks(experiment, stage, every_row)
  for evaluation in experiment.evaluations:
    where = f'evaluation {evaluation.label}'
    yield Look(where, 'problems', lambda each=evaluation: _problems(experiment, each))
    yield Look(where, 'verifier', lambda each=evaluation: _verifier(each))


def _stage_looks(experiment: Experiment, stage: Stage, every_row: bool) -> Iterator[Look]:
  where, rows = f'stage {stage.name}', StageRows(experiment, stage, every_row=every_row)
  yield Look(where, 'method', lambda: _method(experiment, stage))
  for name in stage.asked:
    for part, judge in named_parts(name, stage.judges[name]):
      look = lambda part=part, judge=judge: _judge(experiment, part, judge)
      yield Look(where, f'judge {part}', look)
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


def _disk(experiment: Experiment, workdir: Path) -> str:
  """Checkpoints that are kept, one that is being written, and the student."""
  size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  states = [abstract_state(experiment, stage) for stage in experiment.stages]
  each = max(size(state.moved) for state in states)
  whole = (experiment.checkpoints_kept + 1) * each + max(size(state.params) for state in states)
  have = sum(file.stat().st_size for file in workdir.rglob('*') if file.is_file())
  there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.is_dir())
  free, wanted = shutil.disk_usage(there).free, max(whole - have, 0)
  shown = lambda size: f'{size / 2**30:,.2f} GiB' if size >= 2**27 else f'{size / 2**20:,.1f} MiB'
  told = f'{shown(wanted)} for checkpoints and the student, {shown(free)} free'
  if wanted > free:
    raise ValueError(
      f'disk: {there} has no room: {told}. Free some, take another --workdir, or keep fewer checkpoints '
      '(experiment.Experiment.checkpoints_kept).'
    )
  return told


def _method(experiment: Experiment, stage: Stage) -> str:
  check_stage(stage, experiment.model)
  check_gates(stage, experiment.evaluations)
  return stage.method.paper


def _judge(experiment: Experiment, name: str, judge: Judge) -> str:
  if judge.weights is None:
    return 'the student itself'
  check_vocabulary(name, judge.weights, experiment.known_tokenizer, experiment.model)
  load.check_files(judge.weights, judge.layout or experiment.layout)
  return f'{_shape(load.config_of(judge.weights))}; {judge.weights}'


def _problems(experiment: Experiment, evaluation: Evaluation) -> str:
  longest = evaluation.check_room(experiment.known_tokenizer, experiment.model.max_positions)
  return f'{len(evaluation.chosen)} problems; prompts of at most {longest} tokens'


def _verifier(evaluation: Evaluation) -> str:
  if evaluation.task.verify is None:
    return 'none: no accuracy is reported'
  return verdict_on_nothing(evaluation.task, evaluation.chosen[0])
