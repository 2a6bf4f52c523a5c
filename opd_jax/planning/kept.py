"""Floor 6. What compiling has told of a program, kept in the user's cache folder: the next plan asks the folder first.

A program is known by its lowered text, by the chips that it is for and by who compiles it. Lowering takes seconds,
compiling minutes. The folder keeps the compiled text, so what is counted in it may change without compiling again.
"""

import contextlib
import gzip
import hashlib
import inspect
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from opd_jax import programs
from opd_jax.planning import traffic

MOST = 512 * 2**20  # bytes that the folder may hold; a program takes 20 KB to 1 MB
SETTINGS = 'XLA_FLAGS', 'LIBTPU_INIT_ARGS'  # of the environment: they change what is compiled


class Answer(NamedTuple):
  """Of a compiler, about one program on one device."""

  peak: int  # bytes while it runs, its arguments included
  text: str  # of the compiled program
  refused: str | None  # why there is no room
  seconds: float  # that compiling took
  kept: bool = False  # from an earlier plan

  @property
  def sent(self) -> Mapping[str, float]:
    """Bytes of a call's collectives, by kind."""
    return traffic.sent(self.text)


def asked(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> Answer:
  """The folder's answer, or else the compiler's, which the folder gets.

  JAX_ENABLE_COMPILATION_CACHE=0 compiles anew. A folder that cannot be read or written costs time, never the plan.

  Args:
    lowered: the program.
    devices: of its mesh.
  """
  settings: Any = jax.config
  if not settings.jax_enable_compilation_cache:
    return compiled(lowered, devices[0].platform)
  file = None
  with contextlib.suppress(OSError, RuntimeError):  # a RuntimeError: there is no home
    file = folder() / f'{fingerprint(lowered, devices)}.json.gz'
  if (found := _read(file)) is not None:
    return found
  answer = compiled(lowered, devices[0].platform)
  if file is not None:
    with contextlib.suppress(OSError):
      _write(file, answer)
  return answer


def folder() -> Path:
  return programs.cache_of_user() / 'plans'


def fingerprint(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> str:
  """Equal for programs about which a compiler says the same."""
  first = devices[0]
  places = [getattr(device, 'coords', device.id) for device in devices]
  facts = [first.platform, first.device_kind, str(places), *_compiler(first)]
  facts += [f'{name}={os.environ.get(name, "")}' for name in SETTINGS]
  facts += [inspect.getsource(compiled)]
  whole = hashlib.sha256()
  for fact in (*facts, lowered.as_text()):
    whole.update(hashlib.sha256(fact.encode()).digest())
  return whole.hexdigest()[:40]


def _compiler(device: Any) -> list[str]:
  """Versions; programs for processors use what this one can."""
  names = ('jax', 'jaxlib') if device.platform == 'cpu' else ('jax', 'jaxlib', 'libtpu')
  known = []
  for name in names:
    with contextlib.suppress(metadata.PackageNotFoundError):
      known.append(f'{name} {metadata.version(name)}')
  return [*known, programs.processor()] if device.platform == 'cpu' else known


def compiled(lowered: jax.stages.Lowered, platform: str) -> Answer:
  """Asks the compiler; one of a chip refuses what does not fit.

  For processors, the compiler's own peak leaves temporaries out, so they are added up.
  """
  begun = time.monotonic()
  try:
    program, text = traffic.printed(lowered) if platform == 'tpu' else (lowered.compile(), None)
  except Exception as error:
    if (reason := _refused(error)) is None:
      raise
    return Answer(0, '', reason, time.monotonic() - begun)
  memory: Any = program.memory_analysis()
  peak = memory.peak_memory_in_bytes
  if platform == 'cpu':
    given = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak = given + memory.temp_size_in_bytes - memory.alias_size_in_bytes
  text = (program.as_text() or '') if text is None else text
  return Answer(peak, text, None, time.monotonic() - begun)


def _refused(error: Exception) -> str | None:
  """Why a compiler found no room; None where that was not the reason."""
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text and 'Ran out of memory' not in text:
    return None
  lines: Sequence[str] = [line.strip() for line in text.splitlines() if 'hbm' in line.lower()]
  return (lines or text.splitlines())[0][:120]


def _read(file: Path | None) -> Answer | None:
  """None where nothing is there, or nothing that can be read."""
  if file is None:
    return None
  try:
    answer = Answer(**json.loads(gzip.decompress(file.read_bytes())))
    file.touch()  # `tidy` drops what was used longest ago
  except (OSError, EOFError, ValueError, TypeError, zlib.error):
    return None
  return answer._replace(kept=True)


def _write(file: Path, answer: Answer) -> None:
  """Whole or not at all: plans may run side by side."""
  file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
  partial = file.with_name(f'{file.stem}.{os.getpid()}.part')
  partial.write_bytes(gzip.compress(json.dumps(answer._asdict()).encode(), 6))
  partial.replace(file)
  programs.tidy(file.parent, most=MOST)
