"""A CPU process keeps the memory that its programs free."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, jax, jax.numpy as jnp
from opd_jax import host

print(host.keep_memory() if KEEP else False)
large = jax.jit(lambda x: (x @ x.T) @ x)  # 64 MiB in between
argument, found = jnp.ones((4096, 8)), []
for _ in range(41):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  large(argument).block_until_ready()
  found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(found[20:])[10])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc can be told')
def test_the_second_call_of_a_program_faults_no_pages():
  run = lambda keep: subprocess.run(
    [sys.executable, '-c', f'KEEP = {keep}\n{FAULTS}'], capture_output=True, text=True, check=True
  ).stdout.split()
  (kept, few), (plain, many) = run(True), run(False)
  assert (kept, plain) == ('True', 'False') and 10 * int(few) < int(many)  # pages may be large


@pytest.mark.parametrize(
  'told', ['JAX_NUM_CPU_DEVICES=2', 'XLA_FLAGS=--xla_force_host_platform_device_count=2']
)
def test_several_simulated_devices_give_it_back(told):
  name, _, value = told.partition('=')
  code = 'from opd_jax import host; print(host.keep_memory())'
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, name: value}
  )
  assert done.stdout.split() == ['False'], done.stderr
