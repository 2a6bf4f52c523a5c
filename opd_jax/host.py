"""Floor 0. What this process asks of the machine it runs on."""

import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import re
import threading
from pathlib import Path

import jax

TRIM, PAD, MMAP, MOST_MMAPS, ARENAS = -1, -2, -3, -4, -8  # numbers of glibc's malloc.h
LARGE = 1 << 30
ENDING = threading.Event()  # somebody has asked this process to end: whoever waits gives up
MAPPINGS = 20_000  # of memory; every program holds about eight, and Linux allows a process 65,530


def keep_memory() -> bool:
  """Where there is only a CPU, memory that a program frees stays with the process; says whether it will.

  glibc hands buffers over 32 MiB back at once, and XLA asks for one in every call: a training step of 60 MB of
  temporaries spent a third of its time on 15,000 page faults. To be called before JAX starts its threads.
  Several simulated devices give it back: what eight threads keep breaks into pieces, 12 GiB in place of 4.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None or not only_cpu() or _simulates_several():
    return False
  large = mallopt(MMAP, LARGE) or mallopt(
    MOST_MMAPS, 0
  )  # older ones take no more than 32 MiB for the first
  return bool(large) and all(
    mallopt(*each) for each in ((TRIM, 2 * LARGE - 1), (PAD, LARGE // 4), (ARENAS, 1))
  )


def only_cpu() -> bool:
  """Whether JAX will find no accelerator, without starting it."""
  asked = getattr(jax.config, 'jax_platforms', None)
  if asked:
    return asked == 'cpu'
  return (
    not importlib.metadata.entry_points(group='jax_plugins')
    and importlib.util.find_spec('libtpu') is None
  )


def _simulates_several() -> bool:
  several = re.search(
    r'xla_force_host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', '')
  )
  return (getattr(jax.config, 'jax_num_cpu_devices', -1) > 1) or (
    several is not None and int(several[1]) > 1
  )


def make_room() -> None:
  """Lets compiled programs go where this process holds so many that the kernel would soon refuse it memory."""
  mappings = Path('/proc/self/maps')
  if mappings.exists() and mappings.read_text().count('\n') > MAPPINGS:
    jax.clear_caches()
    gc.collect()
