"""Floor 6. `opd new-method`: writes the files of a new method, with a test that fails until its formula is there."""

import argparse
import importlib.util
import keyword
import shlex
from pathlib import Path

HELP = 'begin a method: a file, its gin file, and a test that fails until the formula is written'
EPILOG = """\
  opd new-method my_method               in this repository: opd_jax/methods, experiments/methods, tests/methods
  opd new-method my_method --folder own  in a folder of your own: my_method.py, my_method.gin, my_method_test.py
"""
ROOT = Path(__file__).parent.parent.parent  # of the repository

METHOD = '''\
"""NAME: say here what it is and where it was published."""

from opd_jax import rollouts
from opd_jax.losses import advantages
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import PolicyGradient
from opd_jax.claims import Nothing
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {}  # settings that the paper compares, e.g. {'twice': {'coefficient': 2.0}}


def NAME(*, coefficient: float = 1.0) -> Method:
  r"""Say in one sentence what it does to which tokens.

      A_t = coefficient (log q(y_t) - log p(y_t)),      loss = -Σ A_t log p(y_t) / tokens

  Name the paper and the equation here, and what departs from them.

  Args:
    coefficient: of the advantage.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    advantage = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    return (PolicyGradient()(per_token(evidence.mask) * coefficient * advantage),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Nothing('say what the gradient is, or why nothing can be said'),
    paper='arXiv:0000.00000',
  )
'''

GIN = """\
# NAME: say here what it is.
# Paper    arXiv:0000.00000
# Claim    say what the paper promises
# Command  RUNopd train --gin_file experiments/models/small.gin --gin_file experiments/data/sums.gin \\
#            --gin_file FILE \\
#            --gin_file experiments/judges/teacher.gin --gin_bindings 'TEACHER = "runs/sft/student"' --workdir runs/NAME
# Result   `opd certify CERTIFY`
from __gin__ import dynamic_registration
IMPORT

METHOD = @NAME.NAME()
NAME.NAME.coefficient = 1.0
"""

TEST = '''\
"""NAME against the formula of its paper, written again in float64."""

import numpy as np

from opd_jax.method import as_asked
from opd_jax.method_reads import blank_evidence
IMPORT


def formula(log_p: np.ndarray, log_q: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """What the paper multiplies -log p(y_t) by, [B, R]: zero outside the mask, already divided."""
  raise NotImplementedError(
    'NAME: write the formula of the paper here, without looking at the method.'
  )


def test_the_coefficients_are_those_of_the_paper():
  method, rng = NAME(), np.random.RandomState(3)
  log_p, log_q = np.log(rng.uniform(0.05, 0.9, (2, 4, 3))).astype(np.float32)
  mask = np.arange(3) < np.array([3, 1, 0, 2])[:, None]
  blank = blank_evidence(method)
  scores = dict(blank.scores)  # scores that are not set here are zero
  scores['student'] = scores['student']._replace(logp=log_p)
  scores['teacher'] = scores['teacher']._replace(logp=log_q)
  evidence = blank._replace(scores=scores, mask=mask, rollout=blank.rollout._replace(mask=mask))
  (weighted,) = method.weigh(as_asked(evidence, method.needs))
  expected = formula(log_p.astype(np.float64), log_q.astype(np.float64), mask)
  np.testing.assert_allclose(weighted.coefficient, expected, rtol=1e-5, atol=1e-6)
'''


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('name', metavar='NAME', help='of the function and of its file')
  parser.add_argument(
    '--folder',
    metavar='DIR',
    help='where to write the files; default: the folders of this repository',
  )


def run(args: argparse.Namespace) -> None:
  check_name(args.name)
  files = _in_repository(args.name) if args.folder is None else _beside(args.name, args.folder)
  for path in files:
    if path.exists():
      raise ValueError(f'new-method: {path} is already there. Choose another name or remove it.')
  if args.folder is None and not (ROOT / 'opd_jax' / 'methods').is_dir():
    raise ValueError(f'new-method: {ROOT} is no checkout of opd_jax. Give --folder DIR.')
  for path, text in files.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f'wrote    {path}')
  print('next     ' + _next(args.name, args.folder))


def check_name(name: str) -> None:
  """Refuses what cannot be the name of a function and of a module."""
  if keyword.iskeyword(name) or keyword.issoftkeyword(name):
    raise ValueError(f'new-method: {name!r} is a word of Python. Choose another name.')
  if not name.isidentifier():
    raise ValueError(
      f'new-method: {name!r} is no name of a Python function. Use letters, digits and _, and begin with a letter.'
    )
  if name != name.lower():
    raise ValueError(f'new-method: {name!r} must be in lower case, as {name.lower()!r}.')


def _in_repository(name: str) -> dict[Path, str]:
  package = 'opd_jax.methods'
  gin = f'experiments/methods/{name}.gin'
  return {
    ROOT / 'opd_jax' / 'methods' / f'{name}.py': METHOD.replace('NAME', name),
    ROOT / gin: _gin(name, gin, f'from {package} import {name}', name),
    ROOT / 'tests' / 'methods' / f'{name}_test.py': _test(name, f'{package}.{name}'),
  }


def _beside(name: str, folder: str) -> dict[Path, str]:
  if importlib.util.find_spec(name) is not None and not (Path(folder) / f'{name}.py').exists():
    raise ValueError(f'new-method: a module that exists is called {name!r}. Choose another name.')
  gin = str(Path(folder) / f'{name}.gin')
  return {
    Path(folder) / f'{name}.py': METHOD.replace('NAME', name),
    Path(gin): _gin(name, gin, f'import {name}', f'--module {name}', run=_path_prefix(folder)),
    Path(folder) / f'{name}_test.py': _test(name, name),
  }


def _path_prefix(folder: str) -> str:
  """Puts `folder` on Python's path in front of a command; the working directory is on it already."""
  return '' if Path(folder) == Path() else f'PYTHONPATH={shlex.quote(folder)} '


def _gin(name: str, file: str, statement: str, certify: str, run: str = '') -> str:
  text = GIN.replace('FILE', file).replace('IMPORT', statement).replace('CERTIFY', certify)
  return text.replace('RUN', run).replace('NAME', name)


def _test(name: str, module: str) -> str:
  return TEST.replace('IMPORT', f'from {module} import {name}').replace('NAME', name)


def _next(name: str, folder: str | None) -> str:
  if folder is None:
    file = f'tests/methods/{name}_test.py'
    return f'write the formula in {file}, then the method; then `pytest {file}` and `opd certify {name}`.'
  test, prefix = Path(folder) / f'{name}_test.py', _path_prefix(folder)
  return (
    f'write the formula in {test}, then the method; then `pytest {test}`, '
    f'`{prefix}opd methods --module {name}` and `{prefix}opd certify --module {name}`.'
  )
