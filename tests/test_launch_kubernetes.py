"""The manifests in launch/kubernetes, against schemas and against JAX."""

import inspect

import jsonschema
import kubernetes_validate
import pytest
import tiny
import yaml
from jax._src.clusters import k8s_cluster

from ijepa_jax import errors

FOLDER = tiny.ROOT / 'launch' / 'kubernetes'
# The oldest with podFailurePolicy out of beta, and the newest known here.
VERSIONS = ('1.31', kubernetes_validate.latest_version())

NAME = {'type': 'string', 'pattern': '^[a-z]([a-z0-9-]*[a-z0-9])?$'}
COUNT = {'type': 'integer', 'minimum': 0}


def closed(required=(), **properties):
  """A JSON schema of an object that has these fields and no others."""
  return {
    'type': 'object',
    'additionalProperties': False,
    'required': list(required),
    'properties': properties,
  }


def one_of(*values):
  return {'enum': list(values)}


def array(items):
  return {'type': 'array', 'items': items}


# What a JobSet may hold: jobset.x-k8s.io/v1alpha2 as of JobSet 0.9, without its
# status, volume claims, and what is deprecated. Templates are checked as Jobs.
JOBSET = closed(
  ('apiVersion', 'kind', 'metadata', 'spec'),
  apiVersion=one_of('jobset.x-k8s.io/v1alpha2'),
  kind=one_of('JobSet'),
  metadata=closed(('name',), name=NAME, labels={}, annotations={}),
  spec=closed(
    coordinator=closed(
      ('replicatedJob',), replicatedJob=NAME, jobIndex=COUNT, podIndex=COUNT
    ),
    failurePolicy=closed(
      maxRestarts=COUNT,
      restartStrategy=one_of('Recreate', 'BlockingRecreate'),
      rules=array(
        closed(
          ('name', 'action'),
          name={'type': 'string', 'pattern': '^[A-Za-z]([\\w,:]*\\w)?$'},
          action=one_of(
            *('FailJobSet', 'RestartJobSet'),
            'RestartJobSetAndIgnoreMaxRestarts',
          ),
          onJobFailureReasons=array(
            one_of(
              *('BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes'),
              *('MaxFailedIndexesExceeded', 'PodFailurePolicy'),
            )
          ),
          targetReplicatedJobs=array(NAME),
        )
      ),
    ),
    managedBy={'type': 'string'},
    network=closed(
      enableDNSHostnames={'type': 'boolean'},
      publishNotReadyAddresses={'type': 'boolean'},
      subdomain=NAME,
    ),
    replicatedJobs=array(
      closed(
        ('name', 'template'),
        name=NAME,
        groupName=NAME,
        replicas=COUNT,
        template=closed(('spec',), metadata={}, spec={'type': 'object'}),
        dependsOn=array(
          closed(
            ('name', 'status'), name=NAME, status=one_of('Ready', 'Complete')
          )
        ),
      )
    ),
    successPolicy=closed(
      ('operator',),
      operator=one_of('All', 'Any'),
      targetReplicatedJobs=array(NAME),
    ),
    suspend={'type': 'boolean'},
    ttlSecondsAfterFinished=COUNT,
  ),
)


def manifests(name):
  return list(yaml.safe_load_all((FOLDER / name).read_text()))


def jobset_job():
  """The Job that the JobSet controller makes."""
  (jobset,) = manifests('jobset.yaml')
  (replicated,) = jobset['spec']['replicatedJobs']
  assert replicated['replicas'] == 1  # JAX counts the pods of one Job
  name = f'{jobset["metadata"]["name"]}-{replicated["name"]}-0'
  return {
    'apiVersion': 'batch/v1',
    'kind': 'Job',
    'metadata': {'name': name},
    'spec': replicated['template']['spec'],
  }


def plain_job():
  return manifests('job.yaml')[-1]


@pytest.mark.parametrize('version', VERSIONS)
def test_manifests_follow_the_schemas_of_kubernetes(version):
  (jobset,) = manifests('jobset.yaml')
  jsonschema.validate(jobset, JOBSET)
  core = [*manifests('setup.yaml'), *manifests('job.yaml'), jobset_job()]
  for manifest in core:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_be_found():
  (jobset,) = manifests('jobset.yaml')
  jobset['spec']['failurePolicy']['maxRestart'] = 1
  with pytest.raises(jsonschema.ValidationError, match='maxRestart'):
    jsonschema.validate(jobset, JOBSET)
  job = jobset_job()
  job['spec']['template']['spec']['terminationGracePeriod'] = 1
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_both_launch_the_same_pods():
  jobset, job = jobset_job()['spec'], plain_job()['spec']
  assert job['template']['spec'].pop('subdomain') == 'ijepa-pods'
  assert job.pop('backoffLimit') > jobset.pop('backoffLimit') == 0
  assert job == jobset


@pytest.mark.parametrize('job', [jobset_job(), plain_job()])
def test_pods_find_each_other_as_jax_looks_for_them(job):
  spec = job['spec']
  assert spec['completionMode'] == 'Indexed'
  assert spec['completions'] == spec['parallelism'] > 1
  assert spec['template']['spec']['restartPolicy'] == 'Never'
  service = manifests('job.yaml')[0]
  assert service['metadata']['name'] == 'ijepa-pods'
  assert service['spec']['selector'] == {'job-name': 'ijepa'}
  assert plain_job()['metadata']['name'] == 'ijepa'


def test_pods_may_call_what_jax_calls_and_nothing_else():
  source = inspect.getsource(k8s_cluster)
  assert '.list_namespaced_pod(' in source
  assert '.read_namespaced_job(' in source
  account, role, binding, claim, _ = manifests('setup.yaml')
  assert role['rules'] == [
    {'apiGroups': [''], 'resources': ['pods'], 'verbs': ['list']},
    {'apiGroups': ['batch'], 'resources': ['jobs'], 'verbs': ['get']},
  ]
  names = [
    binding['roleRef']['name'],
    binding['subjects'][0]['name'],
    account['metadata']['name'],
    plain_job()['spec']['template']['spec']['serviceAccountName'],
  ]
  assert names == [role['metadata']['name']] * 4
  (volume, _) = plain_job()['spec']['template']['spec']['volumes']
  assert (
    volume['persistentVolumeClaim']['claimName'] == (claim['metadata']['name'])
  )


def test_bad_config_data_and_nan_fail_the_job_and_nothing_else_does():
  rules = plain_job()['spec']['podFailurePolicy']['rules']
  fail, evicted, saved = rules
  assert fail['action'] == 'FailJob'
  assert fail['onExitCodes']['operator'] == 'NotIn'
  again = {errors.Interrupted.exit_code, errors.LostProcess.exit_code}
  kept = set(fail['onExitCodes']['values'])
  assert {code for code in kept if code < 128} == again
  assert 130 not in kept
  assert evicted == {
    'action': 'Ignore',
    'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
  }
  assert saved['onExitCodes']['values'] == [errors.Interrupted.exit_code]
  (jobset,) = manifests('jobset.yaml')
  (rule,) = jobset['spec']['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
