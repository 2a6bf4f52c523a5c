"""What judges read, as records and preflight show it: by model, by row, with special tokens, and cut."""

import tiny_runs as runs

from opd_jax import judges
from opd_jax.data.problems import question
from opd_jax.judges import contexts, reading
from opd_jax.training import verbs
from opd_jax.training.state import RunPosition

SOLVED = contexts.solution(introduction=':')


def odd(scene):
  return question('1+') if scene.seed[1] % 2 else None


def test_every_model_with_a_context_is_shown_with_what_it_reads(tmp_path):
  mean = judges.averaged(members=(judges.itself(context=odd), judges.itself()))
  teacher = {'teacher': judges.combined(parts=((1.0, judges.itself(context=SOLVED)), (0.5, mean)))}
  runtime, state = runs.at_work(tmp_path, teacher)
  problems = runtime.stream().take(4)
  responses = verbs.sample(runtime, state.weights, problems, RunPosition())
  scenes = runtime.scenes(responses, RunPosition())
  judge = runtime.judges['teacher']
  names = [reader.name for reader in reading.readers_of('teacher', judge, scenes)]
  assert names == ['teacher/0', 'teacher/1.0', 'teacher/1.1']
  shown = reading.texts_shown('teacher', judge, scenes, runtime.tokenizer, most=200)
  for row, (texts, scene) in enumerate(zip(shown, scenes, strict=True)):
    assert set(texts) == {'teacher/0', 'teacher/1.0'}  # the third reads what the student does
    asked = scene.problem.messages[-1]['content']
    assert f'{asked}:{scene.problem.demonstration}' in texts['teacher/0']
    assert (texts['teacher/1.0'] is None) == (row % 2 == 0)
  cut = reading.texts_shown('teacher', judge, scenes, runtime.tokenizer, most=3)
  assert all(len(texts['teacher/0']) == 4 and texts['teacher/0'].endswith('…') for texts in cut)
