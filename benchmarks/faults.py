"""What `opd train` says when something is wrong: every fault, the exit status, and the last words.

    python benchmarks/faults.py

A full disk is a small tmpfs; where this user may not mount one, the line says so.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

jax.config.update('jax_platforms', 'cpu')

from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import orbax_folder

ROOT = Path(__file__).parent.parent
FILES = ('models/small.gin', 'data/sums.gin', 'judges/teacher.gin', 'methods/opd.gin')


class Bench:
  def __init__(self, folder: Path):
    self.folder = folder
    self.environment = {
      **os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }  # fmt: skip
    self.teacher('teacher', vocab_size=64)

  def teacher(self, name: str, **fields) -> str:
    config = presets.tiny(**{'width': 32, 'num_layers': 1, **fields})
    orbax_folder.save(
      self.folder / name, config, transformer.init(config, mesh_layout(), jax.random.key(1))
    )
    return str(self.folder / name)

  def start(self, workdir: str | Path, *bindings: str, files=FILES) -> subprocess.Popen:
    known = (
      f'TEACHER = "{self.folder / "teacher"}"', 'STEPS = 6', 'PROMPTS = 8', 'evaluator.Evaluation.problems = 8',
      'experiment.Experiment.checkpoint_every = 2', *bindings,
    )  # fmt: skip
    flags = [flag for file in files for flag in ('--gin_file', str(ROOT / 'experiments' / file))]
    flags += [flag for binding in known for flag in ('--gin_bindings', binding)]
    command = [
      sys.executable,
      '-m',
      'opd_jax.cli',
      'train',
      *flags,
      '--workdir',
      str(self.folder / workdir),
    ]
    return subprocess.Popen(
      command,
      env=self.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      cwd=self.folder,
    )

  def tell(self, fault: str, process: subprocess.Popen, *, line: str | None = None) -> None:
    """The fault, the status, and the last line or the one that holds a word."""
    output, _ = process.communicate()
    lines = [text for text in output.splitlines() if text.strip()]
    chosen = [text for text in lines if line is None or line in text]
    start = next(
      (n for n, text in enumerate(lines) if text.startswith('opd train: ')), len(lines) - 1
    )
    words = chosen[-1] if line else ' / '.join(lines[start:])
    print(f'{fault}\n  status {process.returncode}: {words[:600]}', flush=True)


def main(folder: Path) -> None:
  bench = Bench(folder)
  bench.tell('nothing is wrong', bench.start('good'))
  newest = max(
    (folder / 'good/checkpoints').iterdir(), key=lambda path: int(path.name.split('_')[-1])
  )
  victim = max(
    (file for file in (newest / 'state').rglob('*') if file.is_file()),
    key=lambda f: f.stat().st_size,
  )
  os.truncate(victim, victim.stat().st_size // 2)
  bench.tell('a truncated checkpoint', bench.start('good'), line='is damaged')
  bench.tell('resumed with another configuration', bench.start('good', 'RATE = 0.5'))
  bench.tell('a misspelt binding', bench.start('a', 'optimisers.adamw.ratte = 1.0'))
  lines = (
    'from __gin__ import dynamic_registration',
    'from opd_jax.data import problems',
    'from opd_jax.data import sources',
  )
  rows = ('TASK = @problems.Task()', 'problems.Task.name = "mine"', 'problems.Task.source = @sources.json_lines()',
          'problems.Task.read = @problems.from_columns()')  # fmt: skip
  own = folder / 'own.gin'
  own.write_text('\n'.join((*lines, *rows)) + '\n')
  files = (*FILES, str(own))
  bench.tell(
    'a missing data file',
    bench.start('b', 'sources.json_lines.path = "nowhere.jsonl"', files=files),
  )
  (folder / 'bad.jsonl').write_text('{"problem": "1+2=", "answer": "3"}\n{"problem": "1+\n')
  bench.tell('a bad row', bench.start('c', 'sources.json_lines.path = "bad.jsonl"', files=files))
  other = bench.teacher('other', vocab_size=32)
  bench.tell('a teacher with another vocabulary', bench.start('d', f'TEACHER = "{other}"'))
  params = transformer.init(
    presets.tiny(width=32, num_layers=1, vocab_size=64), mesh_layout(), jax.random.key(1)
  )
  broken = jax.tree.map(lambda leaf: leaf * float('nan'), params)
  orbax_folder.save(folder / 'broken', presets.tiny(width=32, num_layers=1, vocab_size=64), broken)
  bench.tell('a teacher that says NaN', bench.start('e', f'TEACHER = "{folder / "broken"}"'))
  process = bench.start('f', 'STEPS = 400')
  while (
    not (folder / 'f/metrics.jsonl').exists()
    or '"loss"' not in (folder / 'f/metrics.jsonl').read_text()
  ):
    time.sleep(0.2)
  process.send_signal(signal.SIGTERM)
  bench.tell('SIGTERM', process, line='saved at step')
  (folder / 'file').write_text('')
  bench.tell('a workdir that cannot be written', bench.start('file/run'))
  _full_disk(bench, folder / 'disk')


def _full_disk(bench: Bench, disk: Path) -> None:
  disk.mkdir()
  if subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(disk)], capture_output=True
  ).returncode:
    print('a full disk\n  not tried: this user may not mount a tmpfs')
    return
  try:
    bench.tell('a full disk', bench.start('disk/run', 'experiment.Experiment.checkpoint_every = 1'))
  finally:
    subprocess.run(['umount', str(disk)], check=False)


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as name:
    main(Path(name))
