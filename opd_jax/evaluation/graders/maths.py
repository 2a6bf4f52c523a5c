r"""Floor 4. Answers that are mathematics, compared by math-verify in processes of its own.

math-verify stops itself with SIGALRM, which works in main threads only and not inside long C calls. So a worker that
does not answer in time is killed, and another one begins.
"""

import functools
import importlib.util

from opd_jax.data.problems import THREADS, Problem, Verdict, thread_safe
from opd_jax.evaluation.graders.answers import spoken
from opd_jax.evaluation.graders.worker import Pool

LAST = 20_000  # characters of a response: an answer stands at its end
SECONDS = 5.0
_WORKERS = Pool('opd_jax.evaluation.graders.maths_worker', THREADS)


@thread_safe
def maths(problem: Problem, response: str) -> Verdict:
  """1 where math-verify takes the response's answer for the problem's."""
  _check_installed()
  reply = _WORKERS.ask([problem.answer, spoken(response)[-LAST:]], seconds=SECONDS)
  if reply is None:
    return Verdict(0.0, 'The answer could not be compared in time.', 'timed out')
  if reply == 'no answer':
    raise ValueError(
      f'maths: math-verify cannot read the answer of {problem.name or "a problem"}, {problem.answer[:80]!r}.'
    )
  if reply == 'unparsed':
    return Verdict(0.0, 'The response holds no answer that can be read as mathematics.', reply)
  right = reply == 'correct'
  return Verdict(float(right), '' if right else 'The answer is wrong.', reply)


@functools.cache
def _check_installed() -> None:
  """Once: the search through all folders of packages is not for every response."""
  if importlib.util.find_spec('math_verify') is None:
    raise ValueError("maths: math-verify is not installed. Run pip install 'opd_jax[maths]'.")
