"""A whole run in plain Python: a teacher learns sums, a weak student learns from it on text that it writes itself.

Run it with `python examples/one_page.py`. `opd_jax/training/loop.py` is the same loop with checkpoints and alarms.
"""

import tempfile

import jax

from opd_jax import api, judges
from opd_jax.data.tiny_worlds import sums
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.inference import decoding
from opd_jax.inference.sampler import Sampling
from opd_jax.losses.divergences import ForwardKL
from opd_jax.methods import gkd, sft
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.training import optimisers
from opd_jax.training.experiment import Experiment, Stage

STUDENT = presets.tiny(width=64, num_layers=2, vocab_size=24)
TOKENIZER = sums.tokenizer()
GREEDY = decoding.Decoding(rules=(decoding.Greedy(),))
WORLD = {'least': 2, 'most': 3, 'largest': 9}  # chains of two or three numbers: 3+4+9=
TASK, ASKED = sums.sums(**WORLD), sums.sums(split='heldout', **WORLD)
HELD_OUT = Evaluation(task=ASKED, problems=64, budget=24, decoding=GREEDY)


def experiment_of(method, steps: int, **judges) -> Experiment:
  fixed = {'optimiser': optimisers.adamw(rate=2e-3), 'sampling': Sampling(budget=24, slots=64)}
  stage = Stage(method=method, task=TASK, steps=steps, prompts=64, judges=judges, **fixed)
  return Experiment(
    model=STUDENT,
    layout=mesh_layout(),
    stages=(stage,),
    tokenizer=TOKENIZER,
    evaluations=(HELD_OUT,),
  )


def run(title: str, experiment: Experiment, params, *, show: int):
  """The steps of a stage: what it ends as, and the accuracy on held-out problems."""
  training = api.begin(experiment, params=params)  # loads the judges
  steps = experiment.stages[0].steps
  for step in range(1, steps + 1):
    responses = api.sample(training)
    evidence = api.score(training, responses)
    batch = api.weigh(training, evidence)
    training, row = api.update(training, responses, evidence, batch)
    if step % show == 0 or step == steps:
      accuracy = api.evaluate(training)['eval/sums/avg@1']
      gap = row.get('teacher/reverse_kl', float('nan'))  # SFT asks no teacher
      told = f'loss {row["loss"]:.3f}, reverse KL {gap:.3f}, accuracy {accuracy:.1%}'
      print(f'{title} {step:4d}: {told}', flush=True)
  return training, accuracy


def main(teacher_steps: int = 120, student_steps: int = 40, steps: int = 60):
  """Trains all three; the student's accuracy before and after it learned from the teacher."""
  random = [transformer.init(STUDENT, mesh_layout(), jax.random.key(seed)) for seed in (0, 1)]
  teacher, _ = run('teacher, SFT', experiment_of(sft.sft(), teacher_steps), random[0], show=40)
  student, before = run('student, SFT', experiment_of(sft.sft(), student_steps), random[1], show=20)
  on_policy = gkd.gkd(divergence=ForwardKL(), student_fraction=1.0)
  with tempfile.TemporaryDirectory() as folder:
    api.save(teacher, f'{folder}/teacher')
    distil = experiment_of(on_policy, steps, teacher=judges.frozen(f'{folder}/teacher'))
    _, after = run('student, GKD', distil, student.state.params, show=20)
  print(f'the student: {before:.1%} before, {after:.1%} after it learned from the teacher')
  return before, after


if __name__ == '__main__':
  main()
