"""What `opd new-method` writes: it runs as it is, and its test waits for the formula."""

import importlib
import sys

import numpy as np
import pytest

from opd_jax import cli
from opd_jax.configuration import build
from opd_jax.training import loop


@pytest.fixture
def written(tmp_path, monkeypatch, pytestconfig):
  """The folder of a new method that is called *shy*."""
  monkeypatch.chdir(pytestconfig.rootpath)
  assert cli.main(['new-method', 'shy', '--folder', str(tmp_path)]) == 0
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path
  for name in ('shy', 'shy_test'):
    sys.modules.pop(name, None)


def formula(log_p, log_q, mask):
  return np.where(mask, log_q - log_p, 0.0) / mask.sum()


def test_its_test_waits_for_the_formula_and_passes_with_it(written, monkeypatch):
  module = importlib.import_module('shy_test')
  with pytest.raises(NotImplementedError, match='shy: write the formula of the paper'):
    module.test_the_coefficients_are_those_of_the_paper()
  monkeypatch.setattr(module, 'formula', formula)
  module.test_the_coefficients_are_those_of_the_paper()
  monkeypatch.setattr(module, 'formula', lambda *given: 1.01 * formula(*given))
  with pytest.raises(AssertionError):
    module.test_the_coefficients_are_those_of_the_paper()


def test_it_is_listed(written, capfd):
  assert cli.main(['methods', '--module', 'shy']) == 0
  assert 'Say in one sentence what it does to which tokens.' in capfd.readouterr().out


def test_it_trains_from_gin(written, tmp_path):
  parts = ('models/tiny', 'data/sums')
  files = [f'experiments/{part}.gin' for part in parts] + [str(written / 'shy.gin')]
  bindings = ['TEACHER = "tiny"', 'STEPS = 1', 'PROMPTS = 2', 'BUDGET = 4',
              'shy.shy.coefficient = 2.0', 'experiment.Experiment.evaluations = []']  # fmt: skip
  experiment, _ = build([*files, 'experiments/judges/teacher.gin'], bindings)
  assert experiment.stages[0].method.paper == 'arXiv:0000.00000'
  quiet = loop.Listener(say=lambda text: None)
  outcome = loop.train(experiment, tmp_path / 'run', listener=quiet, skip_preflight=True)
  assert outcome.finished and outcome.position.step == 1
