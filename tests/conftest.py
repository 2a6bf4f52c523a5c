"""Eight simulated devices, the same on every machine; what several test files share."""

import functools
import os
import tempfile
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = '1'
# Tests compile far more than they compute: without LLVM's optimiser the suite takes half the time.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
# A program is compiled once a session, whichever worker or child process needs it: workers inherit the folder.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  programs = tempfile.TemporaryDirectory(prefix='programs', ignore_cleanup_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = programs.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import jax

jax.config.update('jax_num_cpu_devices', 8)

import numpy as np
import pytest

from opd_jax import cli, host
from opd_jax.models import presets, transformer
from opd_jax.models.config import Delta, Experts, RopeScaling
from opd_jax.sharding import mesh_layout

FAMILIES = {
  'qwen3': presets.tiny,
  'qwen3_moe': lambda **overrides: presets.tiny(
    family='qwen3_moe', experts=Experts(count=8, per_token=2, width=32, normalise=True), **overrides
  ),
  'qwen2': lambda **overrides: presets.tiny(
    family='qwen2', qk_norm=False, qkv_bias=True, **overrides
  ),
  'llama': lambda **overrides: presets.tiny(
    family='llama',
    qk_norm=False,
    rope_scaling=RopeScaling(
      factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=16
    ),
    **overrides,
  ),
  'qwen3_5': lambda **overrides: presets.tiny(
    **{
      'family': 'qwen3_5_text',
      'num_layers': 4,
      'delta': Delta(period=2, key_heads=2, value_heads=8, key_dim=16, value_dim=8, kernel=4),
      'gated': True,
      'centred_norm': True,
      'rotary_share': 0.25,
      'norm_epsilon': 1e-2,  # a head that says nearly nothing is blown up by its norm, and its rounding with it
      **overrides,
    }
  ),
}


# What starts processes, kills them, or follows the pages and the notebooks: `make long`, and not `make test`.
LONG = (
  *(
    f'training/{name}_test.py'
    for name in ('multihost', 'kill', 'served_run', 'bucket', 'full_disk')
  ),
  *(f'{name}_test.py' for name in ('notebooks', 'pages_run', 'examples', 'guide')),
)
# Files of a minute or of many seconds. A worker that begins with them ends with short ones: both end together.
LONG_FIRST = (
  *LONG,
  'training/loop_test.py',
  'certify_test.py',
  'training/stages_test.py',
  'studies/runner_test.py',
)


def pytest_configure(config):
  config.addinivalue_line('markers', 'long: starts processes, or follows pages and notebooks')


def pytest_collection_modifyitems(items):
  """The longest files first; `--dist loadfile --no-loadscope-reorder` deals them in this order."""
  place = {str(Path(__file__).parent / name): number for number, name in enumerate(LONG_FIRST)}
  items.sort(key=lambda item: place.get(str(item.path), len(place)))
  for item in items:
    if place.get(str(item.path), len(place)) < len(LONG):
      item.add_marker('long')


def pytest_addoption(parser):
  parser.addoption('--variants', action='store_true', help='certify the variants of methods, too')


@pytest.fixture(scope='module', autouse=True)
def room():
  """Every compiled program holds mappings of memory, of which Linux allows a process 65,530; the suite makes more."""
  yield
  host.make_room()


@pytest.fixture
def opd(capfd, monkeypatch, pytestconfig):
  """Runs a command from the root: (status, stdout, stderr)."""
  monkeypatch.chdir(pytestconfig.rootpath)

  def run(*arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return status, captured.out, captured.err

  return run


@pytest.fixture(params=FAMILIES)
def family(request):
  """A factory of tiny configurations, once per family."""
  return FAMILIES[request.param]


@pytest.fixture(scope='session')
def single():
  return mesh_layout()


@functools.lru_cache
def _params(config):
  return transformer.init(config, mesh_layout(), jax.random.key(0))


@pytest.fixture(scope='session')
def params_of():
  """Random parameters of a config on one device, made once."""
  return _params


@pytest.fixture
def tokens():
  """Three rows of twelve tokens."""
  return np.random.RandomState(0).randint(0, 320, (3, 12)).astype(np.int32)
