"""What tests of reports share: folders as runs leave them, without a run."""

import json
from pathlib import Path
from typing import Any

HOSTILE = '</script><img src=x onerror="document.title=\'owned\'"><b>bold</b>'
CONFIG = 'METHOD = @opd.opd()\nTASK = @sums.sums()\n'


def record(row: int, step: int, *, tokens: int = 6, prompt: str = '', text: str = 'a') -> dict:
  """One line of rollouts.jsonl: every token reads `text`, numbers follow from row and position."""
  ids = [1 + at % 3 for at in range(tokens)]
  student = [-0.5 - 0.1 * at for at in range(tokens)]
  gap = [(-1) ** at * 0.25 * (1 + row % 4) for at in range(tokens)]
  top = {'ids': [[1, 2]] * tokens, 'logp': [[-0.5, -1.5]] * tokens}
  return {
    'step': step,
    'stage': 'train',
    'row': row,
    'problem': f'problem {row}',
    'prompt': prompt or f'question {row}',
    'shown': {'teacher': f'{prompt} and its solution' if row % 2 else None},
    'reward': float(row % 2),
    'length': tokens,
    'ended_by': 'stop',
    'ids': ids,
    'pieces': {'1': text, '2': ' two', '3': '\n'},
    'writer': 's' * tokens,
    'counts': '1' * (tokens - 1) + '0',
    'logp': {'student': student, 'teacher': [a + b for a, b in zip(student, gap, strict=True)]},
    'entropy': {'student': [0.5] * tokens},
    'coefficients': {'PolicyGradient': [0.01 * each for each in gap]},
    'top_k': {'student': top, 'teacher': top},
  }


def write_lines(file: Path, rows: list[Any], tail: str = '') -> None:
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)


def write_run(
  folder: Path, *, rows: int = 4, steps: tuple[int, ...] = (1, 2), config: str = CONFIG, **options
) -> Path:
  """A run of a few steps that is still going on: the last line of its metrics is cut."""
  folder.mkdir(parents=True)
  (folder / 'config.gin').write_text(config)
  metrics = [{'step': step, 'stage': 'train', 'loss': 1.0 / step} for step in range(1, 4)]
  metrics[1] |= {'eval/sums/avg@2': 0.5, 'gap': None, 'curve/entropy': [0.5, 0.25]}
  write_lines(folder / 'metrics.jsonl', metrics, tail='{"step": 4, "lo')
  kept = [record(row, step, **options) for step in steps for row in range(rows)]
  write_lines(folder / 'rollouts.jsonl', kept)
  outcome = {'step': 2, 'evaluation': 'sums'}
  told = ((0, 'correct'), (0, 'correct'), (1, 'wrong'), (1, 'unparsed'))
  outcomes = [{**outcome, 'problem': str(problem), 'outcome': word} for problem, word in told]
  write_lines(folder / 'outcomes.jsonl', outcomes)
  return folder


def write_study(folder: Path, *, title: str = 'a study', rows: list[Any] | None = None) -> Path:
  """A study's folder as `opd study` leaves it."""
  folder.mkdir(parents=True, exist_ok=True)
  row = {
    'claim': 'A beats B', 'difference': 0.05, 'low': -0.1, 'high': 0.2, 'p': 0.01,
    'detectable': 0.03, 'verdict': 'agrees', 'seeds': 8,
  }  # fmt: skip
  failed = {**dict.fromkeys(row), 'claim': 'a cell that failed', 'verdict': 'cannot tell'}
  (folder / 'study.json').write_text(json.dumps({'paper': title, 'cells': {}}))
  (folder / 'verdicts.json').write_text(json.dumps([row, failed] if rows is None else rows))
  return folder
