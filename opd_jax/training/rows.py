"""Floor 5. The rows of a stage, each read once before step 0: what student and judges would read of it."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

from opd_jax.data import stream
from opd_jax.data.problems import Problem, Task, judged
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.judges import introductions, spec
from opd_jax.judges.build import tokenizer_of
from opd_jax.judges.scenes import Scene, looks_at, name_of
from opd_jax.judges.spec import Routed, Served, Single
from opd_jax.storage import load
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.runtime import room

TOLD_EVERY = 256  # rows
LOOKED_AT = 64  # rows where not all are read, or a batch where that is less


@dataclasses.dataclass
class Misfits:
  """Rows that a judge cannot read."""

  count: int = 0
  first: str = ''  # what is wrong with the first of them

  def add(self, message: str) -> None:
    self.count, self.first = self.count + 1, self.first or message


class StageRows:
  """The rows of a stage.

  Args:
    experiment, stage: whose rows.
    every_row: whether all are read; rows that are drawn from a seed never are.
    status: told how far the reading has come.
  """

  def __init__(
    self,
    experiment: Experiment,
    stage: Stage,
    *,
    every_row: bool,
    status: Callable[[str], None] = lambda text: None,
  ):
    self.experiment, self.stage, self.table = experiment, stage, experiment.model.max_positions
    self.status, self.read = status, 0
    self.every_row = every_row and not stage.task.source.is_drawn
    self.misfits = {name: Misfits() for name in stage.asked}
    self.prompt, self.shortest, self.longest = 0, self.table, 0
    self.silent: dict[str, str] = {}  # contexts of data that have shown nothing yet, by judge
    self.any: Problem | None = None

  def data(self) -> str:
    """Reads them. Refuses rows that the student cannot use."""
    stage, measure = self.stage, room(self.experiment, self.stage)
    readers = self._readers()

    def fits(problem: Problem) -> None:
      self.read += 1
      if self.read % TOLD_EVERY == 0:
        self.status(f'reading rows of {stage.name}: {self.read:,} of {len(stage.task.source):,}')
      self.prompt = measure(problem)

    def visit(problem: Problem) -> None:
      self.any = self.any or problem
      self.shortest, self.longest = min(self.shortest, self.prompt), max(self.longest, self.prompt)
      for name, route, judge, table, tokenizer in readers:
        if route in (None, problem.route):
          self._judge_reads(problem, name, judge, table, tokenizer)
      self._routes(problem)

    for name in stage.asked:
      contexts = {judge.context for reader, _, judge, *_ in readers if reader == name}
      told = [name_of(context) for context in contexts if context and looks_at(context) == 'data']
      if told and len(told) == len(contexts):
        self.silent[name] = told[0]
    wanted = None if self.every_row else min(stage.prompts, LOOKED_AT)
    seen = stream.survey(stage.task, fits=fits, visit=visit, wanted=wanted)
    stream.refuse(stage.task, seen)
    left = f', {seen.bad} bad ones are skipped' * (seen.bad > 0)
    return (
      f'{seen.rows:,} of {len(stage.task.source):,} rows read{left}; prompts of {self.shortest} to {self.longest} '
      'tokens'
    )

  def _readers(self) -> list[tuple[str, str | None, Single, int, Tokenizer]]:
    """Every judge that reads rows: its name, the route of its rows, its position table and its tokenizer."""
    found = []
    for name in self.stage.asked:
      for route, judge in spec.readers(self.stage.judges[name]):
        try:
          table = self._room_of(name, judge)
          tokenizer = tokenizer_of(name, judge, self.experiment.known_tokenizer)
        except ValueError:
          continue  # there is no such model, or nobody answers; whoever looks at the judge says so
        found.append((name, route, judge, table, tokenizer))
    return found

  def _room_of(self, name: str, judge: Single) -> int:
    """Positions of a judge."""
    if isinstance(judge, Served):
      return introductions.positions_of(name, judge) or self.table
    return load.config_of(judge.weights).max_positions if judge.weights else self.table

  def _judge_reads(
    self, problem: Problem, name: str, judge: Single, table: int, tokenizer: Tokenizer
  ) -> None:
    """Notes a row whose prompt and longest response a judge's position table does not hold."""
    own = judge.context is not None or judge.template not in (None, self.stage.template)
    fits = judge.too_long == 'unknown' or (not own and table >= self.table)
    if fits and name not in self.silent:
      return
    messages, context = problem.messages, judge.context
    if context is not None:
      scene = Scene(problem, '', math.nan, '', (), (self.experiment.seed, 0), 0)  # no answers yet
      try:
        messages = context(scene)
      except ValueError as error:
        self.misfits[name].add(f'{problem.name}: {error}')
        return
      except Exception:  # it may look at responses, and there are none
        if not _takes(context, scene):
          self.misfits[name].add(
            f'{problem.name}: the context {name_of(context)} does not take a scene. In gin, a function that makes a '
            'context is called: @contexts.solution()'
          )
        return
    if messages is None:
      return
    self.silent.pop(name, None)
    if fits:
      return
    template = judge.template or self.stage.template
    length = len(template.render(tokenizer, messages))
    response = min(self.stage.sampling.budget, self.table - self.prompt)
    if length + response > table:
      self.misfits[name].add(
        f'{problem.name} has {length} tokens of prompt and up to {response} of response, its position table has '
        f'{table}. Take a judge with a longer table, a BUDGET of at most {max(table - length, 1)}, or leave such rows '
        "without a judgement: too_long = 'unknown'"
      )

  def _routes(self, problem: Problem) -> None:
    for name in self.stage.asked:
      judge = self.stage.judges[name]
      if isinstance(judge, Routed) and problem.route not in (names := [*dict(judge.table)]):
        self.misfits[name].add(
          f'{problem.name} has the route {problem.route!r}, the table has {names}. Every row needs a judge'
        )

  def room_of(self, name: str) -> str:
    """Refuses rows that a judge cannot read."""
    misfits = self.misfits[name]
    if misfits.count:
      more = f' (and {misfits.count - 1} more rows)' * (misfits.count > 1)
      raise ValueError(f'judge {name}: {misfits.first.rstrip(".")}{more}.')
    if name in self.silent and (self.every_row or self.read >= LOOKED_AT):
      raise ValueError(
        f'judge {name}: its context {self.silent[name]} shows nothing of any of the {self.read:,} rows that were read, '
        'so nothing would be learnt from it. Check that the data has what it shows.'
      )
    return 'every row that was read has room'

  def verifier(self) -> str:
    """Asks the verifier about an empty response to one problem."""
    task = self.stage.task
    if task.verify is None:
      return 'none: responses have no reward'
    if self.any is None:
      return 'not asked: there is no problem'
    return verdict_on_nothing(task, self.any)


def _takes(function: Any, *arguments: Any) -> bool:
  """Whether a function can be called with these arguments."""
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError:
    return False
  return True


def verdict_on_nothing(task: Task, problem: Problem) -> str:
  """What a verifier says of an empty response; one that cannot be called is refused here."""
  assert task.verify is not None
  verdict = judged(task.verify, problem, '', of=f'task {task.name}')
  return f'an empty response gets {verdict.reward:g}'
