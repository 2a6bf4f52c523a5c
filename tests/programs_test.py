"""Compiled programs are kept for the next run, wherever that is possible, and no run fails where it is not."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from opd_jax import programs

SCRIPT = """
import jax, jax.numpy as jnp
from opd_jax import programs
programs.keep(print)
with programs.counted() as count:
  print(float(jax.jit(lambda x: jnp.tanh(x @ x.T).sum())(jnp.ones((7, 7)))))
print(count.programs, count.found, jax.config.jax_compilation_cache_dir)
"""


def start(home: Path, **environment: str):
  known = {name: value for name, value in os.environ.items() if 'CACHE' not in name}
  known |= {'XDG_CACHE_HOME': str(home), **environment}
  return subprocess.Popen(
    [sys.executable, '-c', SCRIPT],
    env=known,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def end(process) -> list[str]:
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 0, out
  return out.splitlines()


def test_a_second_process_finds_what_two_have_compiled_at_once(tmp_path):
  both = [start(tmp_path), start(tmp_path)]
  results = {end(each)[0] for each in both}
  value, counted = end(start(tmp_path))
  made, found, folder = counted.split()
  assert results == {value} and made == found != '0'
  assert Path(folder).parent == tmp_path / 'opd_jax' / 'programs'
  for file in Path(folder).iterdir():  # as a killed process or a full disk leaves them
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  assert value in end(start(tmp_path))


def test_settings_of_jax_go_first_and_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
  ways = [
    start(tmp_path / 'unused', JAX_ENABLE_COMPILATION_CACHE='0'),
    start(tmp_path / 'unused', JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'own')),
    start(Path('/dev/null')),
  ]
  off, own, unwritable = map(end, ways)
  assert off[-1].endswith('None') and own[-1].endswith(str(tmp_path / 'own'))
  assert not (tmp_path / 'unused').exists()
  assert unwritable[0].startswith('compiled programs are not kept') and '/dev/null' in unwritable[0]
  assert unwritable[-1].endswith('None') and len({each[-2] for each in (off, own, unwritable)}) == 1


def test_what_was_used_longest_ago_goes_first(tmp_path):
  for number in range(4):
    (tmp_path / str(number)).write_bytes(bytes(100))
    os.utime(tmp_path / str(number), (number, number))
  programs.tidy(tmp_path, most=250)
  assert sorted(file.name for file in tmp_path.iterdir()) == ['2', '3']


@pytest.mark.parametrize('size', [3, 5])
def test_programs_are_counted_while_somebody_listens(size):
  seen = []
  work = jax.jit(lambda x: jnp.cos(x) + size)
  with programs.counted(lambda count: seen.append(str(count))) as count:
    work(jnp.ones(size))
  made = count.programs
  assert made and len(seen) == made and count.seconds >= count.waited > 0
  jax.jit(lambda x: jnp.sin(x) * size)(jnp.ones(size))
  assert count.programs == made
