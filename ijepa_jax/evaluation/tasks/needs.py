"""What tasks need, asked before anything is computed."""

from ijepa_jax import errors
from ijepa_jax.data import dense
from ijepa_jax.evaluation.dense import average_precision
from ijepa_jax.evaluation.tasks.context import SPLITS, Context, SplitName


def require(task: str, needs: tuple[str, ...], context: Context) -> None:
  """Raises a UserError where something is missing.

  Args:
    task: its name.
    needs: any of labels, masks, boxes, pycocotools.
    context: has the images.
  """
  for need in needs:
    if need == 'labels':
      context.require_labels()
    elif need == 'pycocotools':
      average_precision.require()
    else:
      for split in SPLITS:
        {'masks': masked, 'boxes': boxed}[need](context, split, task)


def masked(context: Context, split: SplitName, task: str) -> dense.Masked:
  """The source of a split, which must have masks.

  Raises:
    UserError: it has none.
  """
  source = context.images.split(split).source
  if not isinstance(source, dense.Masked):
    raise errors.UserError(
      f'task {task}: {source.name} has no masks; expected scenes, or a folder '
      'with images/ and masks/'
    )
  return source


def boxed(context: Context, split: SplitName, task: str) -> dense.Boxed:
  """The source of a split, which must have boxes.

  Raises:
    UserError: it has none.
  """
  source = context.images.split(split).source
  if not isinstance(source, dense.Boxed):
    raise errors.UserError(
      f'task {task}: {source.name} has no boxes; expected scenes, or a folder '
      "with annotations.json in COCO's format"
    )
  return source
