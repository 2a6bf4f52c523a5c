"""Floor 6. What a study is: cells, seeds, measures, the claims that are tested, and a paper's own numbers."""

import dataclasses
import math
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

from opd_jax.static import static

NAME = re.compile(r'[\w.+-]+')
FIELDS = ('cells', 'seeds', 'tuning_seeds', 'measures', 'contrasts', 'printed')


@static
class Cell:
  """A run for each seed, as `opd train` does it.

  Args:
    name: of its folder, and in tables.
    files: gin files, looked for from the working directory and from every folder above the study.
    bindings: gin bindings. `{other}` stands for the student of a cell in `after`, of the same seed.
    after: cells that must be done before.
    rates: learning rates, bound to RATE. Of several, the best over the study's tuning seeds is taken.
    chosen_by: the measure by which its rate is chosen; None: the study's first.
    seed: of the one run that serves all seeds, e.g. a teacher; None: each seed has its own run.
    seconds: what a run is believed to take; replaced by what runs of the cell took.
  """

  name: str
  files: tuple[str, ...]
  bindings: tuple[str, ...] = ()
  after: tuple[str, ...] = ()
  rates: tuple[float, ...] = ()
  chosen_by: str | None = None
  seed: int | None = None
  seconds: float | None = None

  def __post_init__(self):
    if not NAME.fullmatch(self.name):
      raise ValueError(f'Cell {self.name!r}: a name is letters, digits and any of . _ + -.')
    for field in ('files', 'bindings', 'after', 'rates'):
      _check_tuple(f'Cell {self.name}', field, getattr(self, field))
    if not self.files:
      raise ValueError(f'Cell {self.name}: files is empty; name the gin files of its experiment.')
    for other in self.after:
      if not any(f'{{{other}}}' in binding for binding in self.bindings):
        raise ValueError(
          f'Cell {self.name}: it comes after {other}, and no binding takes its student. Write e.g. '
          f'\'WEIGHTS = "{{{other}}}"\'.'
        )
    if len(set(self.rates)) < len(self.rates) or not all(rate > 0 for rate in self.rates):
      raise ValueError(
        f'Cell {self.name}: rates must be above 0 and differ, got {self.rates}. Correct them.'
      )

  @property
  def is_tuned(self) -> bool:
    """Whether its rate is chosen among several."""
    return len(self.rates) > 1


@static
class Measure:
  """A number of a finished run.

  Args:
    name: in tables.
    key: of metrics.jsonl, e.g. `eval/sums/avg@1`. Of an average of an evaluation, outcomes.jsonl tells each problem's.
    last: so many of its last values are averaged.
    scale: what values are multiplied with; 100 makes points of fractions.
    lower_is_better: when a rate is chosen.
    smallest: difference that would matter, scaled; the table says how many seeds would show it.
  """

  name: str
  key: str
  last: int = 1
  scale: float = 1.0
  lower_is_better: bool = False
  smallest: float | None = None

  def __post_init__(self):
    if self.last < 1 or (self.smallest is not None and not self.smallest > 0):
      raise ValueError(
        f'Measure {self.name}: last and smallest must be above 0, got {self.last} and '
        f'{self.smallest}. Correct them.'
      )


@static
class Contrast:
  """A claim about cells, tested seed by seed.

  Args:
    claim: in words.
    order: cells, from the lowest to the highest value that the claim expects. Neighbours are compared.
    measure: name of the measure; None: the study's first.
    within: the claim is instead that neighbours differ by less than this, scaled.
  """

  claim: str
  order: tuple[str, ...]
  measure: str | None = None
  within: float | None = None

  def __post_init__(self):
    _check_tuple(f'Contrast {self.claim!r}', 'order', self.order)
    if len(self.order) < 2 or len(set(self.order)) < len(self.order):
      raise ValueError(
        f'Contrast {self.claim!r}: order must name two different cells or more, got {self.order}.'
      )
    if self.within is not None and not self.within > 0:
      raise ValueError(
        f'Contrast {self.claim!r}: within must be above 0, got {self.within}. Leave it out where '
        'the claim is an order.'
      )


@static
class Printed:
  """A number of a paper: a percentage of `problems` x `samples` answers.

  Args:
    cell: whose counterpart it is.
    measure: name of the measure that it is the counterpart of.
    value: in per cent.
    metric: as the paper calls it.
    problems, samples: how many answers it is the share of.
    scale: models it was measured on.
    source: table or figure.
  """

  cell: str
  measure: str
  value: float
  metric: str
  problems: int
  samples: int
  scale: str
  source: str

  def __post_init__(self):
    if not 0 <= self.value <= 100 or self.problems < 1 or self.samples < 1:
      raise ValueError(
        f'Printed {self.cell}: value is a percentage of problems x samples, got {self.value} of '
        f'{self.problems} x {self.samples}. Correct them.'
      )

  @property
  def standard_error(self) -> float:
    """Of the answers alone, on these very problems, at most; other problems and seeds come on top.

    >>> one = Printed(cell='a', measure='b', value=50.0, metric='', problems=25, samples=16, scale='', source='')
    >>> one.standard_error
    2.5
    """
    return math.sqrt(self.value * (100 - self.value) / (self.problems * self.samples))


@static
class Study:
  """Cells that are compared over seeds.

  Args:
    paper: what it is a study of; the head of its table.
    cells: a cell comes behind those that it takes a student of.
    seeds: of the runs that are compared; a run's seed is bound to `experiment.Experiment.seed`.
    tuning_seeds: others, on which rates are chosen.
    measures: the first one chooses rates where a cell does not say otherwise.
    contrasts: the claims; all their tests are one family.
    printed: the paper's numbers.
  """

  paper: str
  cells: tuple[Cell, ...]
  seeds: tuple[int, ...]
  measures: tuple[Measure, ...]
  tuning_seeds: tuple[int, ...] = ()
  contrasts: tuple[Contrast, ...] = ()
  printed: tuple[Printed, ...] = ()

  def __post_init__(self):
    for field in FIELDS:
      _check_tuple('Study', field, getattr(self, field))
    for field in ('cells', 'seeds', 'measures'):
      if not getattr(self, field):
        raise ValueError(f'Study: {field} is empty; a study needs one at least.')
    named: dict[str, list[str]] = {
      'cells': [cell.name for cell in self.cells],
      'measures': [measure.name for measure in self.measures],
      'seeds and tuning_seeds': [str(seed) for seed in (*self.seeds, *self.tuning_seeds)],
    }
    for what, names in named.items():
      if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'Study: {what} must all differ, and {", ".join(twice)} comes twice.')
    self._check_graph()
    self._check_names()

  def _check_graph(self) -> None:
    before: dict[str, Cell] = {}
    for cell in self.cells:
      for other in cell.after:
        if other not in before:
          raise ValueError(
            f'Study: {cell.name} comes after {other}, which is no cell above it. Above it are: '
            f'{", ".join(before) or "none"}.'
          )
        if cell.seed is not None and before[other].seed is None:
          raise ValueError(
            f'Study: {cell.name} serves all seeds and comes after {other}, which has a run for '
            f'each. Give {other} a seed too, or take it from {cell.name}.'
          )
      if cell.is_tuned and (not self.tuning_seeds or cell.seed is not None):
        raise ValueError(
          f'Study: {cell.name} has several rates, which needs tuning_seeds, and a run for each '
          'seed. Name tuning_seeds, or give the cell one rate.'
        )
      before[cell.name] = cell

  def _check_names(self) -> None:
    cells = {cell.name for cell in self.cells}
    measures = {measure.name for measure in self.measures}
    named = [(f'contrast {c.claim!r}', c.order, c.measure) for c in self.contrasts]
    named += [(f'printed {p.value}', (p.cell,), p.measure) for p in self.printed]
    named += [(f'cell {cell.name}', (), cell.chosen_by) for cell in self.cells]
    for who, of, measure in named:
      if unknown := [name for name in of if name not in cells]:
        raise ValueError(f'Study: {who} names {unknown}; cells are {sorted(cells)}.')
      if measure is not None and measure not in measures:
        raise ValueError(f'Study: {who} names {measure!r}; measures are {sorted(measures)}.')

  def cell(self, name: str) -> Cell:
    """By its name."""
    return next(cell for cell in self.cells if cell.name == name)

  def measure(self, name: str | None) -> Measure:
    """By its name; None: the first."""
    return next(m for m in self.measures if name in (m.name, None))


def _check_tuple(who: str, field: str, value: object) -> None:
  if not isinstance(value, tuple):
    raise ValueError(
      f'{who}: {field} must be a tuple, got {value!r}. One member is written with a comma: (x,).'
    )


def read_study(file: Path) -> Study:
  """The STUDY of a Python file. The file is run: it can do whatever you can."""
  if not file.is_file():
    raise ValueError(f'{file} is no file; a study is a Python file that sets STUDY.')
  try:
    study = runpy.run_path(str(file)).get('STUDY')
  except (SyntaxError, NameError, TypeError, ImportError, AttributeError, KeyError) as error:
    raise ValueError(f'{file}: {type(error).__name__}: {error}') from error
  if not isinstance(study, Study):
    raise ValueError(f'{file} sets no STUDY. Its last statement should be STUDY = Study(…).')
  return study


def fields_of(cell: Cell) -> dict[str, object]:
  """What decides what a cell's runs are; its rates and its cost do not."""
  known = dataclasses.asdict(cell)
  return {name: known[name] for name in ('bindings', 'after', 'seed')}


def chosen_among(values: Sequence[tuple[float, float]], measure: Measure) -> float:
  """The rate whose value is best."""
  sign = -1 if measure.lower_is_better else 1
  return max(values, key=lambda pair: sign * pair[1])[0]
