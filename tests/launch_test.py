"""Launch files: fields that JobSet, Kueue and SkyPilot know, scripts that a shell reads, commands with our flags."""

import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from opd_jax import cli

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / 'launch'
SCRIPTS = ('tpu_vm.sh', 'slurm.sbatch')
TEXT, COUNT = {'type': 'string', 'minLength': 1}, {'type': 'integer', 'minimum': 1}
NAME = {'type': 'string', 'pattern': r'^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'}


def record(required=(), **properties):
  """A mapping with these fields and no others."""
  return {
    'type': 'object',
    'properties': properties,
    'required': [*required],
    'additionalProperties': False,
  }


def several(items):
  return {'type': 'array', 'items': items, 'minItems': 1}


WORDS = {'type': 'object', 'additionalProperties': {'type': 'string'}}
META = record(('name',), name=NAME, namespace=NAME, labels=WORDS, annotations=WORDS)
VARIABLES = several(record(('name', 'value'), name=TEXT, value=TEXT))
LIMITS = {'type': 'object', 'additionalProperties': {'type': ['integer', 'string']}}
CONTAINER = record(
  ('name', 'image', 'command', 'args', 'resources'),
  name=NAME, image=TEXT, workingDir=TEXT, env=VARIABLES, command=several(TEXT), args=several(TEXT),
  resources=record(('limits',), limits=LIMITS, requests=LIMITS),
)  # fmt: skip
POD = record(
  ('restartPolicy', 'containers', 'nodeSelector'),
  restartPolicy={'const': 'Never'},  # a podFailurePolicy wants it
  priorityClassName=NAME, terminationGracePeriodSeconds=COUNT, serviceAccountName=NAME, nodeSelector=WORDS,
  containers=several(CONTAINER),
)  # fmt: skip
CODES = record(
  ('operator', 'values'),
  containerName=NAME, operator={'enum': ['In', 'NotIn']}, values=several({'type': 'integer'}),
)  # fmt: skip
POD_RULE = record(
  ('action',),
  action={'enum': ['FailJob', 'FailIndex', 'Ignore', 'Count']},
  onExitCodes=CODES,
)
JOB = record(
  ('parallelism', 'completions', 'backoffLimit', 'template'),
  parallelism=COUNT, completions=COUNT, completionMode={'enum': ['Indexed', 'NonIndexed']},
  backoffLimit={'type': 'integer', 'minimum': 0}, podFailurePolicy=record(('rules',), rules=several(POD_RULE)),
  template=record(('spec',), metadata=record(annotations=WORDS, labels=WORDS), spec=POD),
)  # fmt: skip
REASONS = (
  'BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'MaxFailedIndexesExceeded', 'PodFailurePolicy',
)  # fmt: skip
RULE = record(
  ('action', 'name'),
  name=NAME,
  action={'enum': ['FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts']},
  onJobFailureReasons=several({'enum': [*REASONS]}),
)  # fmt: skip
REPLICATED = record(
  ('name', 'template'),
  name=NAME,
  replicas=COUNT,
  template=record(('spec',), spec=JOB),
)
JOBSET = record(
  ('failurePolicy', 'replicatedJobs'),
  failurePolicy=record((), maxRestarts=COUNT, rules=several(RULE)),
  replicatedJobs=several(REPLICATED),
)
QUOTA = record(('name', 'nominalQuota'), name=TEXT, nominalQuota={'type': ['integer', 'string']})
FLAVOR = record(('name', 'resources'), name=NAME, resources=several(QUOTA))
GROUP = record(
  ('coveredResources', 'flavors'),
  coveredResources=several(TEXT),
  flavors=several(FLAVOR),
)
PREEMPTION = record(
  (), withinClusterQueue={'enum': ['Never', 'LowerPriority', 'LowerOrNewerEqualPriority']}
)
QUEUE = record(
  ('resourceGroups',),
  namespaceSelector=record((), matchLabels=WORDS), preemption=PREEMPTION, resourceGroups=several(GROUP),
)  # fmt: skip
KUEUE = 'kueue.x-k8s.io/v1beta2'
POLICY = {'enum': ['Never', 'PreemptLowerPriority']}
PRIORITY = {'value': {'type': 'integer'}, 'description': TEXT}
KINDS = {  # (apiVersion, kind): the fields beside these and metadata
  ('jobset.x-k8s.io/v1alpha2', 'JobSet'): {'spec': JOBSET},
  ('v1', 'Namespace'): {},
  (KUEUE, 'ResourceFlavor'): {'spec': record(('nodeLabels',), nodeLabels=WORDS)},
  (KUEUE, 'ClusterQueue'): {'spec': QUEUE},
  (KUEUE, 'LocalQueue'): {'spec': record(('clusterQueue',), clusterQueue=NAME)},
  (KUEUE, 'WorkloadPriorityClass'): PRIORITY,
  ('scheduling.k8s.io/v1', 'PriorityClass'): {**PRIORITY, 'preemptionPolicy': POLICY},
}  # fmt: skip
RECOVERY = record((), strategy=TEXT, max_restarts_on_errors={'type': 'integer', 'minimum': 0})
RESOURCES = record(
  ('accelerators',),
  accelerators={'type': 'string', 'pattern': r'^[A-Za-z0-9-]+:\d+$'}, use_spot={'type': 'boolean'}, disk_size=COUNT,
  job_recovery=RECOVERY,
)  # fmt: skip
SKYPILOT = record(
  ('resources', 'run', 'num_nodes'),
  name=TEXT, num_nodes=COUNT, workdir=TEXT, resources=RESOURCES, envs=WORDS, setup=TEXT, run=TEXT,
)  # fmt: skip


def objects(text: str) -> list[dict]:
  """What a file of Kubernetes describes, each held to the fields of its kind."""
  found = [each for each in yaml.safe_load_all(text) if each is not None]
  for each in found:
    fields = KINDS[each['apiVersion'], each['kind']]
    known = record(('metadata',), apiVersion=TEXT, kind=TEXT, metadata=META, **fields)
    jsonschema.validate(each, known)
  return found


def text_of(name: str) -> str:
  return (LAUNCH / name).read_text()


def commands(text: str) -> list[list[str]]:
  """The words behind every `opd` of a script; what the shell would put in is a 1."""
  text = re.sub(r'\$\{\w+[^}]*\}|\$\([^)]*\)|\$\w+', '1', text.replace('\\\n', ' '))
  found = re.findall(r'(?:^|[\s/])opd (train +--[^\n]*)', text, re.MULTILINE)
  inner = lambda line: line.removesuffix('"') if line.count('"') % 2 else line  # of a quoted script
  return [shlex.split(inner(line)) for line in found]


def of(found: list[dict], kind: str) -> dict:
  [one] = [each for each in found if each['kind'] == kind]
  return one


def test_the_jobset_has_fields_that_are_known_and_numbers_that_agree():
  [jobset] = objects(text_of('gke_jobset.yaml'))
  assert jobset['metadata']['annotations'] == {
    'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
  }
  [slices] = jobset['spec']['replicatedJobs']
  job = slices['template']['spec']
  pod = job['template']['spec']
  [container] = pod['containers']
  sides = map(int, pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'))
  chips = container['resources']['limits']['google.com/tpu']
  assert job['parallelism'] == job['completions']
  assert eval('*'.join(map(str, sides))) == chips * job['parallelism']
  assert f'sharding.mesh_layout.data = {slices["replicas"]}' in container['args'][0]
  [rule] = job['podFailurePolicy']['rules']
  assert rule['onExitCodes']['containerName'] == container['name']
  notes = job['template']['metadata']['annotations']
  assert notes['cluster-autoscaler.kubernetes.io/safe-to-evict'] == 'false'
  assert 'cloud.google.com/reservation-name' in pod['nodeSelector']
  assert container['args'][0].startswith('exec '), 'SIGTERM must reach opd, not its shell'


def test_the_queue_is_the_one_that_the_jobset_waits_in():
  [jobset], queue = objects(text_of('gke_jobset.yaml')), objects(text_of('gke_queue.yaml'))
  labels, local = jobset['metadata']['labels'], of(queue, 'LocalQueue')
  assert local['metadata']['name'] == labels['kueue.x-k8s.io/queue-name']
  assert local['metadata']['namespace'] == jobset['metadata']['namespace']
  assert of(queue, 'Namespace')['metadata']['name'] == jobset['metadata']['namespace']
  cluster = of(queue, 'ClusterQueue')
  assert local['spec']['clusterQueue'] == cluster['metadata']['name']
  [group] = cluster['spec']['resourceGroups']
  [flavor] = group['flavors']
  kind = of(queue, 'ResourceFlavor')
  assert flavor['name'] == kind['metadata']['name']
  [slices] = jobset['spec']['replicatedJobs']
  job = slices['template']['spec']
  pod = job['template']['spec']
  assert kind['spec']['nodeLabels'].items() <= pod['nodeSelector'].items()
  limits = pod['containers'][0]['resources']['limits']
  assert limits.keys() == {*group['coveredResources']}
  wanted = slices['replicas'] * job['parallelism'] * limits['google.com/tpu']
  assert wanted <= flavor['resources'][0]['nominalQuota']
  names = [each['metadata']['name'] for each in queue if each['kind'].endswith('PriorityClass')]
  assert {labels['kueue.x-k8s.io/priority-class'], pod['priorityClassName']} <= {*names}


@pytest.mark.parametrize(
  'right, wrong',
  [
    ('parallelism: 4', 'paralelism: 4'),
    ('replicas: 2', 'replicas: two'),
    ('action: FailJobSet', 'action: Fail'),
    ('restartPolicy: Never', 'restartPolicy: Always'),
    ('jobset.x-k8s.io/v1alpha2', 'jobset.x-k8s.io/v1'),
  ],
)
def test_a_field_that_nobody_knows_is_seen(right, wrong):
  text = text_of('gke_jobset.yaml')
  assert right in text
  with pytest.raises((jsonschema.ValidationError, KeyError)):
    objects(text.replace(right, wrong, 1))


def test_the_task_of_skypilot_has_fields_that_are_known():
  task = yaml.safe_load(text_of('skypilot.yaml'))
  jsonschema.validate(task, SKYPILOT)
  for part in ('setup', 'run'):
    subprocess.run(['bash', '-n'], input=task[part], text=True, check=True)


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_shell_reads_the_script(name):
  subprocess.run(['bash', '-n', str(LAUNCH / name)], check=True)


def test_slurm_starts_a_process_for_every_gpu_and_leaves_time_to_save():
  told = dict(re.findall(r'^#SBATCH --([\w-]+)=?(\S*)$', text_of('slurm.sbatch'), re.MULTILINE))
  assert told['ntasks-per-node'] == told['gpus-per-node']
  assert re.fullmatch(r'TERM@\d{3}', told['signal']) and 'requeue' in told
  assert 'gpus-per-task' not in told, 'JAX chooses among all GPUs of the node'


def test_the_script_of_tpu_vms_says_what_it_wants(tmp_path):
  """Without a zone, and with a word that it does not know; `gcloud` is never reached."""
  script, path = str(LAUNCH / 'tpu_vm.sh'), {'PATH': '/usr/bin:/bin'}
  done = subprocess.run(
    [script, 'train'], capture_output=True, text=True, env={**path, 'NAME': 'x'}
  )
  assert done.returncode and 'ZONE: its zone' in done.stderr
  known = {**path, 'NAME': 'x', 'ZONE': 'y'}
  done = subprocess.run([script, 'fly'], capture_output=True, text=True, env=known)
  assert done.returncode == 2 and 'create | install | train | stop | delete' in done.stderr


@pytest.mark.parametrize('file', sorted(LAUNCH.iterdir()), ids=lambda file: file.name)
def test_commands_have_our_flags_and_name_files_that_are_there(file):
  found = commands(file.read_text())
  assert len(found) == (
    file.suffix in ('.sh', '.sbatch') or file.name in ('gke_jobset.yaml', 'skypilot.yaml')
  )
  for words in found:
    args = cli.parser().parse_args(words)
    assert not [name for name in args.gin_file if not (ROOT / name).is_file()]
    assert args.distributed != (args.coordinator is not None)


def test_the_page_names_every_file_and_its_links_are_there():
  text = text_of('README.md')
  linked = re.findall(r'\]\(([^)]+)\)', text)
  assert not [link for link in linked if not (LAUNCH / link).exists()]
  files = {file.name for file in LAUNCH.iterdir()} - {'README.md'}
  assert files == {link for link in linked if '/' not in link}
