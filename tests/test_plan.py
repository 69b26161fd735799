"""What is counted in a partitioned program, and what follows from it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ijepa_jax import accelerators, errors
from ijepa_jax.plan import __main__ as command
from ijepa_jax.plan import (
  fit,
  hlo,
  measured,
  memory,
  plan,
  predict,
  step,
  sweep,
  work,
)

H100 = accelerators.ACCELERATORS['h100-80gb']


def partition(function, *arguments):
  """The program of one device for a function of arrays."""
  text, _ = step.partition(jax.jit(function).lower(*arguments))
  return hlo.parse(text)


def peak(program):
  return max(memory.timeline(program))


# --- Counting --------------------------------------------------------------


def chain(unroll):
  def function(x, weights):
    def body(x, w):
      return jnp.tanh(x @ w), None

    return jax.lax.scan(body, x, weights, unroll=unroll)[0].sum()

  return partition(jax.grad(function), jnp.ones((4, 8)), jnp.ones((5, 8, 8)))


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
  loop, unrolled = chain(unroll=1), chain(unroll=True)
  assert any(x.opcode == 'while' for x, _, _ in loop.walk())
  assert not any(x.opcode == 'while' for x, _, _ in unrolled.walk())
  # Five times forward, and five times back to x.
  assert work.flops(loop) == work.flops(unrolled) == 10 * 2 * 4 * 8 * 8


def test_loops_in_loops_multiply():
  def function(x):
    def inner(i, x):
      return x @ x

    return jax.lax.fori_loop(
      0, 3, lambda i, x: jax.lax.fori_loop(0, 4, inner, x), x
    )

  assert work.flops(partition(function, jnp.ones((8, 8)))) == 12 * 2 * 8**3


def test_a_loop_of_unknown_length_is_refused():
  program = partition(
    lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x),
    jnp.ones((2, 2)),
  )
  with pytest.raises(ValueError, match='not a counted loop'):
    work.flops(program)


def test_products_in_batches_are_counted():
  a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
  assert work.flops(partition(jnp.matmul, a, b)) == 2 * 3 * 4 * 5 * 6


def sharded(function, *specs):
  mesh = jax.make_mesh(
    (4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  arrays = [
    jax.ShapeDtypeStruct(
      (8, 8), jnp.float32, sharding=jax.NamedSharding(mesh, spec)
    )
    for spec in specs
  ]
  return work.collectives(partition(function, *arrays), near=4)


def test_a_sum_over_devices_is_one_collective():
  P = jax.P
  (found,) = sharded(lambda x, y: x @ y, P(None, 'a'), P('a', None))
  assert (found.kind, found.devices, found.times) == ('all-reduce', 4, 1)
  assert found.bytes == 8 * 8 * 4
  # Devices 0, 2, 4 and 6: two of them near each other.
  assert found.neighbours == 2
  assert found.sent == 2 * 3 / 4 * 256
  (found,) = sharded(lambda x, y: x @ y, P(None, 'b'), P('b', None))
  assert (found.devices, found.neighbours) == (2, 2)


@pytest.mark.parametrize(
  ('text', 'groups'),
  [
    ('replica_groups={{0,2},{1,3}}', [[0, 2], [1, 3]]),
    ('replica_groups=[2,2]<=[4]', [[0, 1], [2, 3]]),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ('source_target_pairs={{0,1},{1,0}}', [[0, 1], [1, 0]]),
  ],
)
def test_groups_of_devices_are_read_in_every_notation(text, groups):
  x = hlo.Instruction('x', (), 'all-reduce', (), f'){text}, channel=1', False)
  np.testing.assert_array_equal(hlo.groups(x), groups)


def test_groups_that_are_written_otherwise_are_not_guessed():
  x = hlo.Instruction('x', (), 'all-reduce', (), 'replica_groups=new', False)
  with pytest.raises(ValueError, match='unknown groups'):
    hlo.groups(x)


# --- Memory ----------------------------------------------------------------


def test_a_product_is_in_memory_and_elementwise_work_is_not():
  def function(x):
    return jnp.exp(jnp.tanh(x @ x) + 1) @ x

  x = jnp.ones((16, 16))
  # The first product, what is made of it, and the second product.
  assert peak(partition(function, x)) <= 3 * x.nbytes
  assert peak(partition(function, x)) >= 2 * x.nbytes


def test_what_a_loop_keeps_for_its_way_back_is_in_memory():
  def function(x, weights):
    def body(x, w):
      return jnp.tanh(x @ w), None

    return jax.lax.scan(body, x, weights)[0].sum()

  gradient = jax.grad(function, argnums=(0, 1))
  small, large = (
    peak(partition(gradient, jnp.ones((64, 8)), jnp.ones((n, 8, 8))))
    for n in (10, 20)
  )
  # Of each turn its input, the derivative of its tanh, and a gradient.
  kept = 10 * (2 * 64 * 8 + 8 * 8) * 4
  # One version of JAX keeps the result beside the derivative.
  assert kept <= large - small <= 1.5 * kept


@pytest.mark.parametrize(
  'remat', ['none', pytest.param('full', marks=pytest.mark.slow)]
)
def test_memory_is_what_xla_plans_in_float32(remat):
  config = tiny.config(
    batch_size=64, model__dtype='float32', model__remat=remat
  )
  mesh = step.make_mesh(config, 1)
  program, planned = step.partition_step(config, mesh)
  ours = peak(hlo.parse(program))
  assert ours == pytest.approx(planned.temp_size_in_bytes, rel=0.35)


# --- Time ------------------------------------------------------------------

STEP = step.Step(
  shape=(8, 8, 1),
  images=32,
  state_bytes=10e9,
  gradient_bytes=2e9,
  timeline=[30e9, 52e9, 20e9],
  flops=4e13,
  moved_bytes=3.35e11,
  collectives=[work.Collective('all-reduce', int(1e9), 8, 8, 9)],
)
ASSUMED = predict.Assumed('h100-80gb', 0.4, 1000)


def test_seconds_follow_from_rates():
  seconds = predict.seconds(STEP, ASSUMED)
  assert seconds.compute == pytest.approx(4e13 / 989e12 / 0.4)
  assert seconds.memory == pytest.approx(0.1)
  assert seconds.network == pytest.approx(9 * 2 * 7 / 8 * 1e9 / 450e9)
  assert seconds.step == pytest.approx(seconds.compute + seconds.network)
  assert seconds.overlapped == seconds.compute
  assert seconds.binds == 'compute'


@pytest.mark.parametrize(
  ('devices', 'neighbours', 'rate'),
  [(8, 8, 450e9), (64, 8, 400e9), (64, 1, 50e9), (16, 2, 100e9)],
)
def test_between_hosts_each_neighbour_has_a_network_card(
  devices, neighbours, rate
):
  x = work.Collective('all-gather', int(1e9), devices, neighbours, 1)
  step = STEP._replace(collectives=[x])
  expected = (devices - 1) / devices * 1e9 / rate
  assert predict.seconds(step, ASSUMED).network == pytest.approx(expected)


def test_the_table_of_accelerators_is_the_only_one_of_peaks():
  assert accelerators.peak_flops('NVIDIA H100 80GB HBM3') == 989e12
  assert accelerators.peak_flops('TPU v5 lite') == 197e12
  assert accelerators.peak_flops('TPU v5') == 459e12  # v5p calls itself so
  assert accelerators.peak_flops('NVIDIA H100 PCIe') is None  # 756e12
  assert accelerators.peak_flops('cpu') is None
  for accelerator in accelerators.ACCELERATORS.values():
    for kind in accelerator.kinds:
      assert accelerators.peak_flops(kind) == accelerator.flops


# --- What fits -------------------------------------------------------------


def test_the_largest_batch_follows_from_the_worst_moment():
  # The update takes 20 GB with any batch, the forward pass 1 GB per image.
  lines = fit.through(
    STEP._replace(images=8, timeline=[18e9, 30e9], state_bytes=10e9),
    STEP._replace(images=16, timeline=[26e9, 30e9], state_bytes=10e9),
  )
  assert lines.at(8) == lines.at(16) == pytest.approx(20e9)
  assert lines.at(40) == pytest.approx(40e9)
  assert lines.largest(50e9) == 50
  assert lines.largest(19e9) == 0


def test_other_programs_are_not_compared():
  with pytest.raises(ValueError, match='other programs'):
    fit.through(STEP, STEP._replace(images=16, timeline=[1]))


def test_jax_takes_a_share_of_the_memory_of_a_gpu(monkeypatch):
  new, old = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'
  monkeypatch.delenv(new, raising=False)
  monkeypatch.delenv(old, raising=False)
  assert fit.usable_bytes(H100) == 60e9
  monkeypatch.setenv(old, '0.9')
  assert fit.usable_bytes(H100) == 72e9
  monkeypatch.setenv(new, '0.8')  # both: jaxlib refuses to start
  with pytest.raises(errors.UserError, match=f'{new}=0.8, {old}=0.9: expected'):
    fit.usable_bytes(H100)
  monkeypatch.delenv(old)
  assert fit.usable_bytes(H100) == pytest.approx(64e9)
  for wrong in ('all', '90', '0', 'nan'):
    monkeypatch.setenv(new, wrong)
    with pytest.raises(errors.UserError, match=f'MEM_FRACTION={wrong}'):
      fit.usable_bytes(H100)


@pytest.mark.parametrize(
  ('usable', 'suggestion'),
  [
    (1e12, 'fsdp=1 --config.optim.accumulate=1'),
    (4.6e6, 'fsdp=4 --config.optim.accumulate=1'),
    (2.9e6, 'fsdp=8 --config.optim.accumulate=2'),
    (1e6, 'none: with --config.mesh.fsdp=8 a single image does not fit'),
  ],
)
def test_the_suggested_mesh_is_the_first_that_fits(usable, suggestion):
  # State and gradients are 9.7 MB, and a device has 2 images.
  config = tiny.config(batch_size=16)
  accelerator = dataclasses.replace(H100, memory=usable, usable=1.0)
  lines = fit.Lines(np.array([0.25e6]), np.array([1e6]))
  made = STEP._replace(shape=(1, 8, 1), gradient_bytes=0.25e6)
  assert suggestion in fit.suggest(config, made, lines, accelerator)


CONFIG = f'--config={tiny.ROOT / "tests" / "tiny_config.py"}'
BASE = [CONFIG, '--accelerator=h100-80gb']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--accelerator=h10', '--devices=8'], 'h10: .*nearest: h100-80gb'),
    ([], 'expected --devices=N or --sweep'),
    (['--devices=8', '--sweep'], 'expected --devices=N or --sweep'),
    (['--devices=0'], '0 is not at least 1'),
    (['--devices=8', '--utilisation=40'], r'40 is not in \(0, 1\]'),
    (['--devices=8', '--out=x.png'], '--out: expected with --sweep'),
    (['--sweep', '--out=nowhere/x.png'], 'nowhere/x.png: no such directory'),
    (['--devices=8', '--device=8'], 'unknown flag --device; .*--devices'),
  ],
)
def test_bad_arguments_end_in_one_line(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    command.main([*BASE, *arguments])


def test_an_accelerator_must_be_named():
  with pytest.raises(errors.UserError, match=r'one of a100-40gb, .*tpu-v6e$'):
    command.main([CONFIG, '--devices=8'])


def test_cudnn_is_planned_as_xla_and_auto_as_bfloat16():
  config = tiny.config(model__attention='cudnn')
  planned, notes = plan.prepare(config)
  assert planned.model.attention == 'xla'
  assert planned.model.dtype == 'bfloat16'
  assert 'cudnn' in notes[0]
  assert config.model.attention == 'cudnn'


@pytest.fixture(scope='module')
def planned():
  config, _ = plan.prepare(tiny.config(batch_size=32, mesh__fsdp=2))
  return config, plan.make(config, 8, ASSUMED)


def test_a_plan_holds_the_state_and_the_work(planned):
  config, result = planned
  assert result['mesh'] == {'data': 4, 'fsdp': 2, 'tensor': 1}
  assert result['images'] == 4
  shapes = jax.eval_shape(lambda: step.train_step.init_state(config))
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  assert whole / 2 < result['state_bytes'] < 0.6 * whole
  assert result['peak_bytes'] > result['state_bytes']
  useful = step.program.useful_flops(
    config,
    {
      'context_length': np.full(1, config.mask.context_tokens),
      'target_length': np.full(1, config.mask.target_tokens),
    },
  )
  assert result['flops'] * 8 == pytest.approx(useful, rel=0.1)
  assert {'all-gather', 'reduce-scatter'} <= set(result['collectives'])
  assert result['updates'] == 6


def test_a_plan_names_what_binds_and_what_it_leaves_out(planned):
  text = plan.table(planned[1], ASSUMED)
  assert 'data 4 x fsdp 2 x tensor 1' in text
  assert 'fits in 60 GB' in text
  assert 'binds' in text
  assert 'nothing in benchmarks/results/ is of h100-80gb' in text


@pytest.mark.slow
def test_the_largest_batch_has_the_predicted_peak(planned):
  _, result = planned
  larger = plan.prepare(tiny.config(batch_size=128, mesh__fsdp=2))[0]
  per_image = (result['usable_bytes'] - result['peak_bytes']) / (
    result['largest_images'] - result['images']
  )
  made = step.compile_step(larger, 8, near=8)
  expected = result['peak_bytes'] + 12 * per_image
  assert made.peak_bytes == pytest.approx(expected, rel=0.05)


def test_measured_steps_of_the_same_accelerator_are_found(tmp_path):
  def write(name, kind, results):
    record = {'machine': {'device_kind': kind}, 'results': results}
    (tmp_path / name).write_text(json.dumps(record))

  one = {'name': 'a', 'utilisation': 0.5, 'images_per_second': {'median': 9}}
  write('step.json', 'NVIDIA H100 80GB HBM3', {'step': one})
  row = {'name': 'step b', 'values': one | {'utilisation': 0.6}}
  other = {'name': 'device', 'values': {}}
  check = {'gpu_check': {'rows': [other, row]}}
  write('check.json', 'NVIDIA H100 80GB HBM3', check)
  write('other.json', 'NVIDIA H100 PCIe', check)  # a slower one
  write('cpu.json', 'cpu', {'step': one | {'utilisation': None}})
  (tmp_path / 'old.json').write_text('{"machine": "a laptop"}')
  found = measured.find(H100, tmp_path)
  assert [(x.file, x.name, x.utilisation) for x in found] == [
    ('check.json', 'step b', 0.6),
    ('step.json', 'a', 0.5),
  ]


def test_the_records_of_this_repository_can_be_read():
  assert measured.FOLDER.is_dir()
  for accelerator in accelerators.ACCELERATORS.values():
    measured.find(accelerator)


def test_a_sweep_is_a_table_and_a_picture(tmp_path):
  config, _ = plan.prepare(tiny.config())
  rows = [
    plan.of_step(config, STEP._replace(shape=(n, 8, 1)), ASSUMED)
    | {'efficiency': 1.0}
    for n in (1, 2, 4)
  ]
  assert '8 x 8 x 1' not in sweep.table(rows)
  assert '4 x 8 x 1' in sweep.table(rows)
  sweep.draw(tmp_path / 'scaling.png', rows, ASSUMED)
  assert (tmp_path / 'scaling.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_a_sweep_leaves_out_what_the_batch_does_not_fit(capsys):
  config, _ = plan.prepare(tiny.config(batch_size=8))
  rows = sweep.make(config, (4, 8, 16), ASSUMED)
  assert [row['devices'] for row in rows] == [4, 8]
  assert rows[0]['efficiency'] == 1
  assert '16 devices left out: batch_size=8' in capsys.readouterr().err
