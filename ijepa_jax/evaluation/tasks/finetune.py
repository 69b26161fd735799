"""Fine-tuning of the whole encoder on all training images, label by label.

The untrained encoder is the same training from scratch. Pixels are a linear
classifier on the image itself, trained by the same recipe.
"""

import dataclasses
from typing import Any

from ijepa_jax.data import scenes
from ijepa_jax.evaluation.finetuning import planning, training
from ijepa_jax.evaluation.finetuning import recipe as recipes
from ijepa_jax.evaluation.tasks import scoring
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score


def run(context: Context) -> list[Score]:
  """One score for each label: the last weights, or their average."""
  recipe, labels = chosen_recipe(context), context.labels('train')
  train, test = (context.images.split(name) for name in ('train', 'test'))
  scores = []
  for label, y in labels.items():
    context.log(f'{context.kind}: fine-tuning on {label}')
    tuner = make_tuner(context, recipe, classes=train.source.labels[label])
    params = tuner.fit(
      start(context),
      train.source,
      context.records('train'),
      label,
      context.seed,
      context.options['workers'],
    )
    predicted = tuner.predict(
      params, test.source, context.records('test'), context.crop
    )
    details = {
      'trained on': f'{len(y):,} images',
      'model': model_of(context),
      **planning.details(recipe, tuner.plan(len(y))),
    }
    scores.append(scoring.top1(label, predicted, context, details))
  return scores


def make_tuner(
  context: Context, recipe: recipes.Recipe, classes: int
) -> training.FineTuner:
  """What fine-tunes this context's encoder, or pixels."""
  encoder = context.encoder
  return training.FineTuner(
    None if encoder is None else encoder.architecture,
    context.image_size,
    classes,
    recipe,
    context.mesh,
    'float32' if encoder is None else encoder.dtype,
  )


def start(context: Context) -> dict[str, Any] | None:
  """Parameters to start from; None for pixels."""
  return None if context.encoder is None else context.encoder.params


def model_of(context: Context) -> str:
  """What was trained, in words."""
  return {
    'trained': 'the encoder and a linear layer on its averaged patches',
    'init': 'the same from scratch',
    'pixels': 'a linear layer on the pixels, at most 16 x 16',
  }[context.kind]


def chosen_recipe(context: Context) -> recipes.Recipe:
  """The preset with what the user set.

  Epochs that the user gives are kept: the preset's least number of updates is
  then off.
  """
  options = context.options
  recipe = recipes.PRESETS[options['preset']]
  augment = options['augment']
  if augment == 'auto':
    # A crop changes what there is to count, a flip where it is, and
    # RandAugment of what colour.
    drawn = isinstance(context.images.train.source, scenes.ScenesSource)
    augment = 'no' if drawn else 'yes'
  if augment == 'no':
    recipe = recipes.without_augmentation(recipe)
  fields = {field.name for field in dataclasses.fields(recipe)}
  changes = {
    name: value
    for name, value in options.items()
    if name in fields and value is not None
  }
  if 'epochs' in changes:
    changes.setdefault('min_steps', 0)
  return dataclasses.replace(recipe, **changes)
