r"""Floor 4. Two verifiers of the same response: the first decides, and where the second differs is counted."""

from opd_jax.data.problems import Problem, Verdict, Verifier, is_thread_safe, judged, thread_safe


def both(*, first: Verifier, second: Verifier) -> Verifier:
  r"""A verifier with the first one's verdict, which also says what the second one says.

  They disagree where one of them takes the response for correct and the other does not (`summary.disagreed`). How
  often that happens bounds what the choice of a grader does to a score.

  Args:
    first: whose reward and outcome count.
    second: whose outcome is recorded beside it.

  >>> from opd_jax.evaluation.graders.integers import integers
  >>> last = lambda problem, text: float(text.endswith(problem.answer))
  >>> verdict = both(first=integers, second=last)(Problem((), answer='42'), r'\boxed{41}, not 42')
  >>> verdict.outcome, verdict.second
  ('wrong', 'correct')
  """

  def verify(problem: Problem, response: str) -> Verdict:
    verdict = judged(first, problem, response, of='both, first')
    return verdict._replace(second=judged(second, problem, response, of='both, second').outcome)

  return thread_safe(verify) if is_thread_safe(first) and is_thread_safe(second) else verify
