"""Floor 1. Readers of published data sets, by the columns that their authors document.

Each returns a `Reader` for `problems.Task.read`; a row without its columns is a bad row, named by file and number.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from opd_jax.data.problems import Problem, Reader, answer_in, question, roles, text_in
from opd_jax.data.sources import Raw, Source

BOXED = '\nPlease reason step by step, and put your final answer within \\boxed{}.'


def deepmath(
  *, least_difficulty: float = -1.0, suffix: str = BOXED, solution: int | None = None
) -> Reader:
  """DeepMath-103K (zwhe99/DeepMath-103K): question, final_answer, difficulty, r1_solution_1 to _3.

  Args:
    least_difficulty: easier rows are left out; the papers take 6, about 57 thousand rows.
    suffix: appended to the question.
    solution: 1, 2 or 3: which solution to imitate.
  """

  def read(row: Raw) -> Problem | None:
    if float(row['difficulty']) < least_difficulty:
      return None
    demonstration = None if solution is None else text_in(row, f'r1_solution_{solution}')
    return Problem(
      question(text_in(row, 'question') + suffix),
      answer=answer_in(row, 'final_answer'),
      demonstration=demonstration,
      route='maths',
    )

  return read


def gsm8k(*, suffix: str = BOXED) -> Reader:
  """GSM8K (openai/gsm8k): question, answer; the number stands behind #### at the end of the answer.

  Args:
    suffix: appended to the question.
  """

  def read(row: Raw) -> Problem:
    _, mark, number = text_in(row, 'answer').rpartition('####')
    if not mark or not number.strip():
      raise ValueError('its answer has no number behind ####')
    return Problem(
      question(text_in(row, 'question') + suffix), answer=number.strip(), route='maths'
    )

  return read


def openthoughts(*, suffix: str = '') -> Reader:
  """OpenThoughts-114k: system, conversations of {from: user|assistant, value}; its first answer is imitated."""
  names = {'user': 'user', 'human': 'user', 'assistant': 'assistant', 'gpt': 'assistant'}

  def read(row: Raw) -> Problem:
    turns = roles(
      row['conversations'],
      column='conversations',
      role='from',
      content='value',
      names=names,
    )
    if len(turns) < 2 or turns[0]['role'] != 'user' or turns[1]['role'] != 'assistant':
      raise ValueError('its conversation is not a question and an answer')
    system = [{'role': 'system', 'content': text_in(row, 'system')}] if row.get('system') else []
    first = {**turns[0], 'content': turns[0]['content'] + suffix}
    return Problem(
      (*system, first), demonstration=turns[1]['content'], route=str(row.get('domain', ''))
    )

  return read


def openthoughts3(*, domain: str | None = None, suffix: str = '') -> Reader:
  """OpenThoughts3-1.2M: difficulty, source, domain, conversations of {from: human|gpt, value}, no system turn.

  Args:
    domain: 'math', 'code' or 'science'; None takes all.
    suffix: appended to the question.
  """
  plain = openthoughts(suffix=suffix)
  return lambda row: plain(row) if domain in (None, row['domain']) else None


TOOL_FORMAT = """\
Your task is to answer the user's question by calling a tool.

Name: {name}
Description: {description}
Documentation:
{documentation}

Answer in this format, without anything else:
Thought: what has to be done
Action: the name of one tool function
Action Input: a JSON object with the arguments, realistic values taken from the question

Begin!
Question: {question}"""


def toolalpaca() -> Reader:
  """ToolAlpaca in the single-turn format: name, description, nl_documentation, instruction, golden_answer.

  The answer is the list of golden calls as JSON; `golden_response`, where a row has it, is imitated.
  """

  def read(row: Raw) -> Problem:
    text = TOOL_FORMAT.format(
      name=text_in(row, 'name'),
      description=text_in(row, 'description'),
      documentation=text_in(row, 'nl_documentation'),
      question=text_in(row, 'instruction'),
    )
    response = row.get('golden_response')
    demonstration = '\n'.join(response) if isinstance(response, list) else response
    return Problem(
      question(text),
      answer=json.dumps(row['golden_answer']),
      demonstration=demonstration,
      route='tools',
    )

  return read


PUBLISHED = 'all', '68'  # splits of ToolAlpaca's own files
OTHER = (
  "toolalpaca_evaluation: the split '97' is not in ToolAlpaca's files: 68 of its rows are those of the split '68', 29 "
  'were written for it. Read its own file: experiments/evaluations/toolalpaca_97.gin.'
)


def toolalpaca_evaluation(path: str, *, split: str = 'all') -> Source:
  """ToolAlpaca's evaluation file as published, a row for each instruction, with the columns that `toolalpaca` reads.

  The simulated file has 100 instructions, the real one 114. Scores of different sets do not compare.

  Args:
    path: of eval_simulated.json or eval_real.json.
    split: 'all', or '68': the instructions of eval_simulated.json whose golden calls are JSON without a placeholder.
      SDFT, SDPO and OPD+ report those.
  """
  if split not in PUBLISHED:
    raise ValueError(
      OTHER
      if split == '97'
      else f'toolalpaca_evaluation: the splits are {", ".join(PUBLISHED)}; got {split!r}.'
    )
  asked = lambda api: zip(api['Instructions'], api['Golden_Answers'], strict=True)
  return _ToolAlpaca(path, 'evaluation', asked, split)


def toolalpaca_training(path: str) -> Source:
  """ToolAlpaca's training file as published, a row for each conversation that called a tool.

  It has no golden answers: the calls of the conversation stand in for them.

  Args:
    path: of train_data.json.
  """
  return _ToolAlpaca(path, 'training', _conversations, 'all')


def _conversations(api: Raw) -> Iterator[tuple[str, Any]]:
  """What was asked, and the calls that followed: each step is [[function, arguments as JSON, text], observation]."""
  for instance in api['Instances']:
    if steps := instance.get('intermediate_steps'):
      calls = [{'Action': call[0], 'Action_Input': call[1]} for call, *_ in steps]
      yield instance['input'], calls


class _ToolAlpaca(Source):
  """Args:
  path: of the file.
  kind: of the file, for errors.
  asked: instructions and golden calls of a tool.
  split: which of them.
  """

  def __init__(
    self, path: str, kind: str, asked: Callable[[Raw], Iterable[tuple[str, Any]]], split: str
  ):
    self.path, self.split, self._kind, self._asked = path, split, kind, asked

  @functools.cached_property
  def _rows(self) -> list[tuple[str, Raw]]:
    try:
      apis = json.loads(Path(self.path).read_text(encoding='utf-8'))
      rows = [
        (f'{api["Name"]}, instruction {number}', _tool_row(api, instruction, answer))
        for api in apis
        for number, (instruction, answer) in enumerate(self._asked(api), start=1)
        if self.split == 'all' or _can_be_made(answer)
      ]
    except FileNotFoundError as error:
      raise ValueError(f'{self.path}: there is no such file.') from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
      raise ValueError(
        f'{self.path}: this is no {self._kind} file of ToolAlpaca ({type(error).__name__}: {error}).'
      ) from error
    if self.split != 'all' and len(rows) != int(self.split):
      raise ValueError(
        f'{self.path}: the split {self.split!r} is one of eval_simulated.json, where {self.split} instructions have '
        f'golden calls without a placeholder; here {len(rows)} have.'
      )
    return rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, number: int) -> Raw:
    return self._rows[number][1]

  def name(self, number: int) -> str:
    return f'{self.path}, {self._rows[number][0]}'

  def id(self, number: int) -> str:
    return f'{Path(self.path).name}, {self._rows[number][0]}'


def _can_be_made(golden: Any) -> bool:
  """Whether golden calls are JSON, and none has a placeholder like ${id from search}."""
  try:
    return all(
      isinstance(json.loads(call['Action_Input']), dict) and '$' not in call['Action_Input']
      for call in golden
    )
  except json.JSONDecodeError:
    return False


def _tool_row(api: Raw, instruction: str, answer: Any) -> Raw:
  return {
    'name': api['Name'],
    'description': api['Description'],
    'nl_documentation': api['NLDocumentation'],
    'instruction': instruction,
    'golden_answer': answer,
  }
