"""Floor 6. The page itself: template, style and scripts, and the data that they show, in one text.

Nothing of a run is ever markup. What the template writes is escaped by jinja; what the scripts write are text nodes of
data that travel gzipped in base64; and the page's own policy lets only the script run whose hash it names, and no
request be made.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from opd_jax.report.folders import Claim, Run, Study

HERE = Path(__file__).parent
SCRIPTS = ('core.js', 'charts.js', 'curves.js', 'tokens.js', 'diff.js', 'viewer.js', 'controls.js')


def page(runs: Sequence[Run], studies: Sequence[Study], *, title: str) -> str:
  """The whole page as text."""
  style = (HERE / 'style.css').read_text(encoding='utf-8')
  script = '\n'.join((HERE / name).read_text(encoding='utf-8') for name in SCRIPTS)
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  environment.filters['number'] = _number
  return environment.get_template('page.html.jinja').render(
    title=title,
    runs=runs,
    studies=[(study, _plots(study.claims)) for study in studies],
    style=style,
    script=script,
    has_seeds=any(each['cell'] for each in index_of(runs)),
    hashes=[_hash(text) for text in (style, script)],
    chunks=_chunks(runs),
  )


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.3g}'.replace('-', '−')


def _hash(text: str) -> str:
  return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _chunks(runs: Sequence[Run]) -> list[tuple[str, str]]:
  """Data by the id of the element that holds it: an index for everything, and a chunk for each recorded step."""
  packed = {'index': gzip.compress(json.dumps(index_of(runs)).encode(), 6, mtime=0)}
  for number, run in enumerate(runs):
    for place, recorded in enumerate(run.recorded):
      packed[f'rollouts-{number}-{place}'] = recorded.packed
  return [(name, base64.b64encode(data).decode()) for name, data in packed.items()]


def index_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """What the scripts read before anybody asks for rollouts."""
  cells = cells_of([Path(run.folder) for run in runs])
  return [
    {
      'name': run.name,
      'metrics': {key: list(zip(*points, strict=True)) for key, points in run.metrics.items()},
      'intervals': run.intervals,
      'recorded': [(each.step, each.stage, each.rows) for each in run.recorded],
      'cell': cell,
    }
    for run, cell in zip(runs, cells, strict=True)
  ]


def cells_of(folders: Sequence[Path]) -> list[str | None]:
  """Whose seed a run is, as a study lays them out: folders with a number for a name, several in one folder.

  >>> cells_of([Path('study/opd/0.001/1'), Path('study/opd/0.001/2'), Path('study/gkd/0.001/1'), Path('run')])
  ['opd/0.001', 'opd/0.001', None, None]
  """
  above = [folder.parent if folder.name.isdigit() else None for folder in folders]
  name = lambda parent: '/'.join(parent.parts[-2:])
  return [
    name(parent) if parent is not None and above.count(parent) > 1 else None for parent in above
  ]


def _plots(claims: Sequence[Claim]) -> dict[str, Any]:
  """Where intervals of a study lie on one scale of 0 to 100, with zero inside; None where a row has no interval."""
  known = [
    (claim.difference, claim.low, claim.high)
    for claim in claims
    if claim.difference is not None and claim.low is not None and claim.high is not None
  ]
  ends = [0.0, *(value for each in known for value in each)]
  width = (max(ends) - min(ends)) or 1.0
  place = lambda value: round(4 + 92 * (value - min(ends)) / width, 2)
  rows = [
    None
    if None in (claim.difference, claim.low, claim.high)
    else {name: place(getattr(claim, name)) for name in ('difference', 'low', 'high')}
    for claim in claims
  ]
  return {'zero': place(0.0), 'rows': rows, 'least': min(ends), 'most': max(ends)}
