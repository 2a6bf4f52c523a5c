"""Streams: every row once an epoch, resumed where they were, bad rows named by file and number."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from opd_jax.data import mixture, problems, published, sources, stream
from opd_jax.data.problems import Task, Verdict
from opd_jax.data.stream import Stream
from opd_jax.data.tiny_worlds import calls, sums


def written(tmp_path, rows, name='rows.jsonl'):
  file = tmp_path / name
  file.write_text(
    '\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows) + '\n'
  )
  return str(file)


def task(tmp_path, rows, **options):
  return Task(
    name='t',
    source=sources.json_lines(written(tmp_path, rows)),
    read=problems.from_columns(),
    **options,
  )


GOOD = [{'problem': f'question {n}', 'answer': n} for n in range(7)]


def test_a_stream_shows_every_row_once_an_epoch_and_goes_on_where_it_was(tmp_path):
  stream = Stream(task(tmp_path, GOOD), seed=3)
  epochs = [[problem.answer for problem in stream.take(7)] for _ in range(3)]
  assert all(sorted(epoch) == list('0123456') for epoch in epochs) and epochs[0] != epochs[1]
  state = json.loads(json.dumps(stream.state()))
  ahead = [problem.answer for problem in stream.take(10)]
  again = Stream(task(tmp_path, GOOD), seed=3)
  again.restore(state)
  assert [problem.answer for problem in again.take(10)] == ahead


@pytest.mark.parametrize(
  'bad, words',
  [('{"problem": ', 'not JSON'), ('{"answer": 4}', "it has no 'problem'"), ('[1]', 'list instead')],
)
def test_a_bad_row_stops_by_file_and_line_or_is_counted(tmp_path, bad, words):
  rows = [*GOOD[:3], '', bad, *GOOD[3:]]
  with pytest.raises(ValueError, match=rf'(?s)rows\.jsonl, line 5: .*{words}'):
    Stream(task(tmp_path, rows)).take(8)
  stream = Stream(task(tmp_path, rows, on_bad_row='skip'))
  assert len(stream.take(7)) == 7 and stream.take(7) and stream.skipped == 2
  with pytest.raises(ValueError, match='on_bad_row'):
    task(tmp_path, rows, on_bad_row='ignore')


@pytest.mark.parametrize(
  'row, words',
  [
    ({'problem': None, 'answer': '1'}, 'column problem holds null, text is expected'),
    ({'problem': ['a'], 'answer': '1'}, 'column problem holds list, text is expected'),
    ({'problem': {'text': 'a'}, 'answer': '1'}, 'column problem holds dict, text is expected'),
    ({'problem': 7, 'answer': '1'}, 'column problem holds int, text is expected'),
    ({'problem': ' ', 'answer': '1'}, 'column problem holds an empty text'),
    ({'problem': 'a', 'answer': None}, 'column answer holds null, text or a number is expected'),
    ({'problem': 'a', 'answer': ['1']}, 'column answer holds list, text or a number is expected'),
    ({'problem': 'a', 'answer': True}, 'column answer holds bool, text or a number is expected'),
  ],
)
def test_what_is_no_text_is_a_bad_row_and_never_python_text(tmp_path, row, words):
  with pytest.raises(ValueError, match=rf'rows\.jsonl, line 1: {words}'):
    Stream(task(tmp_path, [row])).take(1)


def test_answers_may_be_numbers_and_further_columns_travel_along(tmp_path):
  read = problems.from_columns(extra=('hint', 'level'))
  row = {'problem': '8*9', 'answer': 72, 'hint': '8*10-8', 'level': 1.5}
  problem = read(row)
  assert problem.answer == '72' and problem.extra == {'hint': '8*10-8', 'level': '1.5'}
  assert problems.from_columns()(row).extra == {} == problems.Problem(()).extra
  table = Task(name='t', source=sources.json_lines(written(tmp_path, GOOD)), read=read)
  with pytest.raises(ValueError, match=r"rows\.jsonl, line \d: it has no 'hint'"):
    Stream(table).take(1)


def test_a_verdict_is_a_number_with_feedback_where_there_is_any(tmp_path):
  problem = problems.Problem((), name='row 3')
  judged = lambda verify: problems.verdict_of(task(tmp_path, GOOD, verify=verify), problem, 'text')
  assert judged(lambda problem, text: True) == Verdict(1.0, outcome='correct')
  assert judged(lambda problem, text: np.float32(0.5)) == Verdict(0.5, outcome='correct')
  assert judged(lambda problem, text: np.bool_(True)) == Verdict(1.0, outcome='correct')
  assert judged(lambda problem, text: problems.Verdict(0, 'wrong sign')) == Verdict(
    0.0, 'wrong sign', 'wrong'
  )
  assert np.isnan(judged(None).reward) and np.isnan(judged(lambda problem, text: np.nan).reward)
  for bad in (None, 'right', np.inf, [1.0], problems.Verdict(None)):
    with pytest.raises(ValueError, match=r'task t: its verifier returned .* for row 3'):
      judged(lambda problem, text, bad=bad: bad)


def test_a_row_without_room_is_a_bad_row(tmp_path):
  def fits(problem):
    if problem.answer == '4':
      raise ValueError('it has too many tokens')

  with pytest.raises(ValueError, match=r'rows\.jsonl, line 5: it has too many tokens'):
    Stream(task(tmp_path, GOOD), fits=fits).take(7)
  stream = Stream(task(tmp_path, GOOD, on_bad_row='skip'), fits=fits)
  assert (
    sorted({problem.answer for problem in stream.take(13)}) == list('012356')
    and stream.skipped == 2
  )
  with pytest.raises(
    ValueError, match=r'no row of the task t can be used: the last bad one is .*too many tokens'
  ):
    Stream(task(tmp_path, GOOD[4:5], on_bad_row='skip'), fits=fits).take(1)


def test_sources_that_give_nothing_are_refused(tmp_path):
  with pytest.raises(ValueError, match='holds no rows'):
    Stream(task(tmp_path, []))
  with pytest.raises(ValueError, match=r'nowhere\.jsonl cannot be read'):
    Stream(
      Task(
        name='t',
        source=sources.json_lines(str(tmp_path / 'nowhere.jsonl')),
        read=problems.from_columns(),
      )
    )
  with pytest.raises(ValueError, match='all are filtered out'):
    Stream(
      Task(name='t', source=sources.json_lines(written(tmp_path, GOOD)), read=lambda row: None)
    ).take(1)


def test_parquet_rows_are_the_same_rows(tmp_path):
  datasets = pytest.importorskip('datasets')
  datasets.Dataset.from_list([{**row, 'answer': str(row['answer'])} for row in GOOD]).to_parquet(
    str(tmp_path / 'rows.parquet')
  )
  table = Task(
    name='t', source=sources.parquet(str(tmp_path / 'rows.parquet')), read=problems.from_columns()
  )
  lines = task(tmp_path, GOOD)
  one, other = (
    [p._replace(name='', id='') for p in Stream(each, seed=1).take(9)] for each in (table, lines)
  )
  first = stream.first(table, 1)[0]
  assert one == other and first.name == f'{tmp_path}/rows.parquet, row 0'
  assert first.id == 'rows.parquet, row 0'


def test_a_problem_has_the_same_id_wherever_its_file_lies(tmp_path):
  ids = []
  for folder in (tmp_path / 'here', tmp_path / 'there'):
    folder.mkdir()
    known = task(folder, GOOD)
    both = mixture.mixture({'a': known, 'b': dataclasses.replace(known, name='u')})
    assert stream.first(known, 1)[0].name == f'{folder}/rows.jsonl, line 1'
    ids.append([problem.id for each in (known, both) for problem in stream.first(each, 3)])
  assert ids[0] == ids[1] and ids[0][:3] == [f'rows.jsonl, line {n}' for n in (1, 2, 3)]
  assert ids[0][3:5] == ['a: rows.jsonl, line 1', 'b: rows.jsonl, line 1']


def test_a_conversation_is_a_prompt_and_what_follows(tmp_path):
  read = problems.from_messages()
  turns = [
    {'role': role, 'content': role[0]}
    for role in ('system', 'user', 'assistant', 'user', 'assistant')
  ]
  problem = read({'messages': turns})
  assert [list(problem.messages), list(problem.demonstration)] == [turns[:2], turns[2:]]
  assert read({'messages': turns[:2]}).demonstration is None
  for bad in (
    [],
    turns[2:],
    turns[:1] + turns[2:],
    [*turns[:2], {'role': 'assistant', 'content': None}],
  ):
    with pytest.raises(ValueError, match='its conversation'):
      read({'messages': bad})
  with pytest.raises(ValueError, match='begins without a question'):
    read({'messages': [{'role': 'user', 'content': ' '}]})
  for value, kind in ((None, 'null'), ('why?', 'str'), ({'role': 'user', 'content': 'a'}, 'dict')):
    with pytest.raises(ValueError, match=f'column messages holds {kind}, a list of turns'):
      read({'messages': value})


def test_published_columns_are_read(tmp_path):
  easy = {
    'question': '1+1?',
    'final_answer': '2',
    'difficulty': 3.0,
    'topic': 't',
    'r1_solution_1': 'so \\boxed{2}',
  }
  read = published.deepmath(least_difficulty=6.0, solution=1)
  assert read(easy) is None
  hard = read({**easy, 'difficulty': 7.5})
  assert (
    hard.answer == '2'
    and hard.demonstration == 'so \\boxed{2}'
    and 'boxed' in hard.messages[0]['content']
  )
  turns = [{'from': 'user', 'value': 'why?'}, {'from': 'assistant', 'value': 'because'}]
  thoughts = published.openthoughts()({'system': 'think', 'conversations': turns})
  assert [m['role'] for m in thoughts.messages] == [
    'system',
    'user',
  ] and thoughts.demonstration == 'because'
  three = [{'from': 'human', 'value': 'why?'}, {'from': 'gpt', 'value': 'because'}]
  row = {'difficulty': 8, 'source': 's', 'domain': 'math', 'conversations': three}
  assert published.openthoughts3(domain='math')(row).demonstration == 'because'
  assert published.openthoughts3(domain='code')(row) is None
  with pytest.raises(ValueError, match='not a question and an answer'):
    published.openthoughts()({'system': '', 'conversations': turns[:1]})
  tool = {
    'name': 'N',
    'description': 'D',
    'nl_documentation': 'how',
    'instruction': 'do',
    'golden_answer': [{'Action': 'a'}],
  }
  call = published.toolalpaca()({**tool, 'golden_response': ['Action: a']})
  assert (
    call.demonstration == 'Action: a'
    and 'how' in call.messages[0]['content']
    and json.loads(call.answer)
  )


@pytest.mark.parametrize(
  'make, tokenizer', [(sums.sums, sums.tokenizer), (calls.calls, calls.tokenizer)]
)
def test_worlds_are_right_by_their_own_verifier_and_hold_out_what_they_say(make, tokenizer):
  train, held = stream.first(make(), 200), stream.first(make(split='heldout'), 200)
  text = lambda problem: problem.messages[0]['content']
  assert not {text(problem) for problem in train} & {text(problem) for problem in held}
  assert all(
    make().verify(problem, problem.demonstration).reward == 1.0 for problem in train + held
  )
  assert all(make().verify(problem, problem.demonstration[:-1]).reward == 0.0 for problem in train)
  assert stream.first(make(), 5) == stream.first(make(), 5) != stream.first(make(seed=1), 5)
  for problem in train[:20]:
    assert tokenizer().decode(tokenizer().encode(problem.demonstration)) == problem.demonstration


def test_calls_are_scored_as_published():
  verify = lambda problem, text: calls.calls().verify(problem, text).reward
  gold = problems.Problem(
    (), answer=json.dumps([{'Action': 'a', 'Action_Input': '{"x": {"y": 1}}'}])
  )
  assert (
    verify(gold, 'Action: a\nAction Input: {"x": {"y": 1}}') == 0.0
  )  # nested objects never match: their rule
  two = problems.Problem(
    (), answer=json.dumps([{'Action': n, 'Action_Input': f'{{"{n}": 1}}'} for n in 'ab'])
  )
  assert verify(two, 'Action: b\nAction Input: {"b": 1}\nAction: a\nAction Input: {"a": 1}') == 1.0
  assert verify(two, 'Action: a\nAction Input: {"a": 1}') == 0.0


def test_toolalpacas_evaluation_file_gives_a_row_for_each_instruction(tmp_path):
  api = {
    'Name': 'Dates', 'Description': 'days', 'NLDocumentation': 'today: the day', 'Instructions': ['a?', 'b?'],
    'Golden_Answers': [[{'Action': 'today', 'Action_Input': '{}'}], []],
  }  # fmt: skip
  file = tmp_path / 'eval.json'
  file.write_text(json.dumps([api, api]))
  source = published.toolalpaca_evaluation(str(file))
  assert len(source) == 4 and source.name(1).endswith('eval.json, Dates, instruction 2')
  problem = published.toolalpaca()(source[0])
  assert problem is not None and problem.answer == json.dumps(api['Golden_Answers'][0])
  assert 'Question: a?' in problem.messages[0]['content']
  file.write_text('{"a": 1}')
  with pytest.raises(ValueError, match=r'eval.json: this is no evaluation file of ToolAlpaca'):
    len(published.toolalpaca_evaluation(str(file)))
  with pytest.raises(ValueError, match='there is no such file'):
    len(published.toolalpaca_evaluation(str(tmp_path / 'none.json')))


def tool_file(tmp_path, *inputs: str) -> str:
  """A file of ToolAlpaca with an instruction for each golden input."""
  calls = [[{'Action': 'today', 'Action_Input': each}] for each in inputs]
  api = {
    'Name': 'Dates', 'Description': 'days', 'NLDocumentation': 'today: the day', 'Golden_Answers': calls,
    'Instructions': [f'{number}?' for number in range(len(inputs))],
  }  # fmt: skip
  (tmp_path / 'tools.json').write_text(json.dumps([api]))
  return str(tmp_path / 'tools.json')


def test_a_split_of_toolalpaca_is_chosen_by_its_rule_and_checked_by_its_number(tmp_path):
  cannot = ['{"id": ${id from search}}', '{"name": "${string}"}', '{"a": ', '"text"']
  source = published.toolalpaca_evaluation(tool_file(tmp_path, *cannot, *68 * ['{}']), split='68')
  assert len(source) == 68 and source[0]['instruction'] == '4?'
  assert source.id(0) == 'tools.json, Dates, instruction 5'
  few = published.toolalpaca_evaluation(tool_file(tmp_path, *67 * ['{}'], cannot[0]), split='68')
  with pytest.raises(ValueError, match=r'one of eval_simulated\.json.* here 67 have'):
    len(few)
  with pytest.raises(ValueError, match=r"'97' is not in ToolAlpaca's files.*toolalpaca_97\.gin"):
    published.toolalpaca_evaluation('x.json', split='97')
  with pytest.raises(ValueError, match=r"the splits are all, 68; got 'real'"):
    published.toolalpaca_evaluation('x.json', split='real')


def test_the_real_file_has_the_published_numbers_of_rows():
  """Per API as papers list the 68 (counts only; the file itself stays where it is)."""
  file = Path(__file__).parents[3] / 'shared/data/toolalpaca_eval_simulated.json'
  if not file.exists():
    pytest.skip(f'{file} is not here')
  source = published.toolalpaca_evaluation(str(file), split='68')
  assert Counter(row['name'] for row in map(source.__getitem__, range(len(source)))) == {
    'Axolotl': 10, 'Auth0': 9, 'A Bíblia Digital': 9, 'Améthyste': 7, 'Abstract Public Holidays': 7,
    'Apache Superset': 7, 'AbuseIPDB': 6, '1Forge': 6, 'Lob.com': 5, 'AniAPI': 2,
  }  # fmt: skip
  assert len(published.toolalpaca_evaluation(str(file))) == 100


GSM = [
  {'question': 'Two and two?', 'answer': '2+2=<<2+2=4>>4\n#### 4'},
  {'question': 'A dear car?', 'answer': 'It is #1.\n#### 12,500'},
]


def test_gsm8k_is_read_through_the_hubs_loader_from_a_folder_of_its_shape(tmp_path):
  datasets = pytest.importorskip('datasets')
  folder = tmp_path / 'gsm8k'
  (folder / 'main').mkdir(parents=True)
  datasets.Dataset.from_list(GSM).to_parquet(str(folder / 'main/test-00000-of-00001.parquet'))
  (folder / 'README.md').write_text(
    '---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test-*\n---\n'
  )
  source = sources.hub(str(folder), config='main', split='test')
  rows = stream.first(Task(name='gsm8k', source=source, read=published.gsm8k()), 2)
  assert [row.answer for row in rows] == ['4', '12,500'] and rows[1].id == 'gsm8k, row 1'
  assert rows[0].messages[0]['content'].startswith('Two and two?\nPlease reason step by step')
  lines = sources.json_lines(written(tmp_path, [*GSM, {'question': 'a', 'answer': '5'}]))
  with pytest.raises(ValueError, match=r'line 3: its answer has no number behind ####'):
    stream.first(Task(name='gsm8k', source=lines, read=published.gsm8k()), 3)


def test_a_hub_that_cannot_be_reached_is_one_line_with_advice():
  pytest.importorskip('datasets')
  with pytest.raises(ValueError, match=r'data: openai/gsm8k cannot be read: .*network') as error:
    len(sources.hub('openai/gsm8k', config='main', split='test'))
  assert '\n' not in str(error.value) and 'name a folder with a copy' in str(error.value)


def test_arrow_files_are_the_same_rows(tmp_path):
  datasets = pytest.importorskip('datasets')
  datasets.Dataset.from_list(GSM).save_to_disk(str(tmp_path / 'kept'))
  source = sources.arrow(str(tmp_path / 'kept/*.arrow'))
  assert [source[n] for n in range(len(source))] == GSM and source.id(1) == '*.arrow, row 1'


def test_toolalpacas_training_file_gives_a_row_for_each_conversation_that_called(tmp_path):
  called = {
    'input': 'a?',
    'intermediate_steps': [[['today', '{"zone": 1}', 'Thought: …'], 'Monday']],
  }
  silent = {'input': 'b?', 'intermediate_steps': []}
  api = {
    'Name': 'Dates', 'Description': 'days', 'NLDocumentation': 'today: the day', 'Instructions': ['a?', 'b?'],
    'Instances': [called, silent, {'input': 'c?'}],
  }  # fmt: skip
  file = tmp_path / 'train.json'
  file.write_text(json.dumps([api]))
  source = published.toolalpaca_training(str(file))
  problem = published.toolalpaca()(source[0])
  assert len(source) == 1 and problem is not None
  assert json.loads(problem.answer) == [{'Action': 'today', 'Action_Input': '{"zone": 1}'}]
  file.write_text(json.dumps([{**api, 'Instances': [{**called, 'intermediate_steps': [[[]]]}]}]))
  with pytest.raises(ValueError, match=r'train.json: this is no training file of ToolAlpaca'):
    len(published.toolalpaca_training(str(file)))
