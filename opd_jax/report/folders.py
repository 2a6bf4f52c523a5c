"""Floor 6. What a report reads of a folder: a run, finished or not, and the verdicts of a study."""

import gzip
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opd_jax.evaluation import summary
from opd_jax.evaluation.pass_at_k import interval
from opd_jax.methods import discover
from opd_jax.report import plans
from opd_jax.storage import places
from opd_jax.storage.places import Place
from opd_jax.training import recorder

METHOD = re.compile(r'@(?:[\w./]+[./])?(\w+)\(\)')  # as gin refers to what it calls


class Described(NamedTuple):
  """A method as its docstring tells it."""

  name: str
  paper: str
  parts: list[tuple[bool, str]]  # (whether it is a formula, the text)


class Recorded(NamedTuple):
  """The kept responses of a step."""

  step: int
  stage: str
  rows: int
  packed: bytes  # a JSON list, gzipped


class Run(NamedTuple):
  """A run as a page shows it."""

  name: str
  folder: str
  config: str
  methods: list[Described]
  metrics: dict[str, list[tuple[int, Any]]]  # (step, value) by name; a value may be a list
  intervals: dict[str, list[tuple[int, float, float]]]  # (step, low, high) by name
  recorded: list[Recorded]
  plan: plans.Plan | None  # of `opd plan --workdir`
  is_finished: bool

  @property
  def step(self) -> int:
    """The last one that there is a number of."""
    return max((points[-1][0] for points in self.metrics.values()), default=0)


class Claim(NamedTuple):
  """A row of a study."""

  claim: str
  difference: float | None
  low: float | None
  high: float | None
  p: float | None
  detectable: float | None
  verdict: str
  seeds: int | None


class Study(NamedTuple):
  """The verdicts of a study."""

  title: str
  claims: list[Claim]


def read(folders: Sequence[Place]) -> tuple[list[Run], list[Study]]:
  """The runs and the studies of some folders; one that holds neither is refused."""
  runs, studies = [], []
  for folder, name in zip(folders, _names(folders), strict=True):
    is_run, is_study = ((folder / file).is_file() for file in ('metrics.jsonl', 'study.json'))
    if not (is_run or is_study):
      what = 'has neither metrics.jsonl nor study.json' if folder.is_dir() else 'is no folder'
      raise ValueError(
        f'report: {folder} {what}. Name the --workdir of `opd train` or of `opd study`.'
      )
    if is_study:
      studies.append(read_study(folder))
    if is_run:
      runs.append(read_run(folder, name))
  return runs, studies


def _names(folders: Sequence[Place]) -> list[str]:
  """The shortest ends of the paths that tell the folders apart."""
  parts = [
    folder.resolve().parts if isinstance(folder, Path) else folder.parts for folder in folders
  ]
  for count in range(1, max(map(len, parts), default=0) + 1):
    names = ['/'.join(each[-count:]) for each in parts]
    if len(set(names)) == len(names):
      return names
  raise ValueError(f'report: a folder is named twice: {", ".join(map(str, folders))}.')


def read_study(folder: Place) -> Study:
  """The verdicts that the last table of a study wrote; a study that is going on may have none."""
  file = folder / 'study.json'
  try:
    title = str(json.loads(file.read_text(encoding='utf-8'))['paper'])
    file = folder / 'verdicts.json'
    rows = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else []
    return Study(title, [_claim(row) for row in rows])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'report: {file} is not what `opd study` writes ({type(error).__name__}: {error}). Run `opd study` again.'
    ) from error


def _claim(row: Mapping[str, Any]) -> Claim:
  """A row of a study; a number that is not finite says nothing."""
  number = lambda name: None if row.get(name) is None else float(row[name])
  found = {name: number(name) for name in ('difference', 'low', 'high', 'p', 'detectable')}
  known = {name: x if x is not None and math.isfinite(x) else None for name, x in found.items()}
  seeds = None if row.get('seeds') is None else int(row['seeds'])
  return Claim(claim=str(row['claim']), verdict=str(row['verdict']), seeds=seeds, **known)


def read_run(home: Place, name: str) -> Run:
  """A run; files that are not there yet are left out."""
  with places.spooled(home, ('config.gin', plans.FILE, *recorder.FILES)) as spool:
    return _run(home, spool.folder, name)


def _run(home: Place, folder: Path, name: str) -> Run:
  config = folder / 'config.gin'
  text = config.read_text(encoding='utf-8') if config.is_file() else ''
  metrics: dict[str, list[tuple[int, Any]]] = defaultdict(list)
  for row in recorder.read(folder):
    for key, value in row.items():
      if key != 'step' and not isinstance(value, str | dict):
        metrics[key].append((row['step'], value))
  outcomes, rollouts = folder / 'outcomes.jsonl', folder / recorder.ROLLOUTS
  return Run(
    name=name,
    folder=str(home),
    config=text,
    methods=methods_of(text),
    metrics=dict(metrics),
    intervals=intervals_of(recorder.read_lines(outcomes)) if outcomes.is_file() else {},
    recorded=_recorded(rollouts) if rollouts.is_file() else [],
    plan=plans.read(folder / plans.FILE),
    is_finished=(home / 'student').is_dir(),
  )


# --- methods ----------------------------------------------------------------------------------------


def methods_of(config: str) -> list[Described]:
  """The methods of the library that a configuration calls, in its order."""
  known = {entry.name: entry for entry in discover()}
  called = dict.fromkeys(match for match in METHOD.findall(config) if match in known)
  return [
    Described(name, known[name].paper, _parts(known[name].make.__doc__ or '')) for name in called
  ]


def _parts(doc: str) -> list[tuple[bool, str]]:
  """Paragraphs of a docstring before its arguments; what is indented is a formula."""
  lines = doc.partition('Args:')[0].strip('\n').splitlines()
  first, *rest = lines or ['']
  indent = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
  text = '\n'.join([first.strip(), *(line[indent:] for line in rest)]).rstrip()
  parts = [part.strip('\n') for part in text.split('\n\n') if part.strip()]
  return [(part.startswith('  '), _flush(part)) for part in parts]


def _flush(part: str) -> str:
  return '\n'.join(line.strip() for line in part.splitlines())


# --- evaluations ------------------------------------------------------------------------------------


def intervals_of(
  outcomes: Iterable[Mapping[str, Any]],
) -> dict[str, list[tuple[int, float, float]]]:
  """95 % bootstrap intervals of avg@k over problems: samples of one problem are no fresh evidence."""
  credits: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
  for row in outcomes:
    if (count := summary.credit(row)) is not None:
      credits[row['evaluation'], row['step']][row['problem']].append(count)
  found: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
  for (label, step), problems in sorted(credits.items()):
    low, high = interval(np.array([np.mean(each) for each in problems.values()]))
    if math.isfinite(low):
      found[f'eval/{label}'].append((step, low, high))
  return dict(found)


# --- rollouts ---------------------------------------------------------------------------------------


def _recorded(file: Path) -> list[Recorded]:
  """The kept responses by step, packed as their lines stand in the file."""
  lines: dict[tuple[int, str], list[str]] = defaultdict(list)
  for line, row in recorder.read_pairs(file):
    lines[row['step'], row['stage']].append(line)
  return [
    Recorded(step, stage, len(found), gzip.compress(f'[{",".join(found)}]'.encode(), 6, mtime=0))
    for (step, stage), found in lines.items()
  ]
