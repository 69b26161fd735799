import json
import math

import numpy as np
import pytest
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.data import dense, dense_folders, scenes, transforms


def write_pair(root, name, mask, size=None):
  """An image and its mask; `size` of the image, (width, height)."""
  size = size or mask.shape[::-1]
  for kind, suffix, image in (
    ('images', '.jpg', Image.new('RGB', size, 'teal')),
    ('masks', '.png', Image.fromarray(mask)),
  ):
    file = (root / kind / name).with_suffix(suffix)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


@pytest.fixture
def masks(tmp_path):
  """Two splits, one image in a sub-folder, classes 0, 1, 2 and 255."""
  mask = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
  mask[0, 0] = 255
  write_pair(tmp_path, 'train/a', mask)
  write_pair(tmp_path, 'train/deep/b', mask.T.copy())
  write_pair(tmp_path, 'test/c', mask)
  return tmp_path, mask


def test_masks_lie_beside_images_under_the_same_name(masks):
  root, mask = masks
  source = dense_folders.open_dense(str(root), 'train')
  assert isinstance(source, dense.Masked)
  names = [source.record_id(index) for index in range(len(source))]
  assert names == ['train/a.jpg', 'train/deep/b.jpg']
  np.testing.assert_array_equal(source.mask(0), mask)
  np.testing.assert_array_equal(source.mask(1), mask.T)
  assert len(dense_folders.open_dense(str(root), 'test')) == 1
  assert source.labels == source[0]['labels'] == {}


def test_a_palette_image_has_its_class_numbers(masks):
  root, mask = masks
  picture = Image.fromarray(mask).convert('P')
  picture.putdata(mask.ravel().tolist())
  picture.putpalette([255, 0, 0] * 256)
  picture.save(root / 'masks' / 'test' / 'c.png')
  source = dense_folders.open_dense(str(root), 'test')
  np.testing.assert_array_equal(source.mask(0), mask)


def test_class_names_are_lines_of_a_file(masks):
  root, _ = masks
  (root / 'classes.txt').write_text('sky\nsea\nland\n')
  source = dense_folders.open_dense(str(root), 'test')
  assert source.mask_classes == ('sky', 'sea', 'land')
  # An empty line is a class without a name: those below keep their numbers.
  (root / 'classes.txt').write_text('\nsky\n\nsea\n\n')
  source = dense_folders.open_dense(str(root), 'test')
  assert source.mask_classes == ('', 'sky', '', 'sea')
  (root / 'classes.txt').write_bytes(b'\xff')
  with pytest.raises(errors.UserError, match=r'classes\.txt cannot be read'):
    dense_folders.open_dense(str(root), 'test')
  (root / 'classes.txt').write_text('sky\nsea\n')
  source = dense_folders.open_dense(str(root), 'test')
  with pytest.raises(errors.UserError, match=r'c\.png has class 2.*0 to 1'):
    source.mask(0)


def test_bad_masks_are_one_line(masks):
  root, mask = masks
  write_pair(root, 'test/c', mask, size=(9, 9))
  source = dense_folders.open_dense(str(root), 'test')
  with pytest.raises(errors.UserError, match=r'4 x 3 pixels.*9 x 9'):
    source.mask(0)
  Image.new('RGB', (4, 3)).save(root / 'masks' / 'test' / 'c.png')
  with pytest.raises(errors.UserError, match='pixels of kind RGB'):
    source.mask(0)
  # Pillow would start another program to look into it.
  (root / 'masks' / 'test' / 'c.png').write_bytes(
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 3\n%%EndComments\n'
  )
  with pytest.raises(errors.UserError, match=r'c\.png cannot be read: not'):
    source.mask(0)
  (root / 'masks' / 'test' / 'c.png').unlink()
  with pytest.raises(errors.UserError, match=r'1 of 1 images have no mask'):
    dense_folders.open_dense(str(root), 'test')


COCO = {
  'images': [
    {'id': 7, 'file_name': 'x.png', 'width': 20, 'height': 10},
    {'id': 3, 'file_name': 'y.png', 'width': 10, 'height': 10},
  ],
  'categories': [{'id': 90, 'name': 'cat'}, {'id': 4, 'name': 'dog'}],
  'annotations': [
    {'id': 1, 'image_id': 7, 'category_id': 90, 'bbox': [5, 0, 10, 5]},
    {
      'id': 2,
      'image_id': 7,
      'category_id': 4,
      'bbox': [10, 5, 20, 5],
      'iscrowd': 1,
    },
  ],
}


def write_coco(top, held=COCO):
  (top / 'images').mkdir(parents=True)
  for item in COCO['images']:
    size = item['width'], item['height']
    Image.new('RGB', size).save(top / 'images' / item['file_name'])
  (top / 'annotations.json').write_text(json.dumps(held))


def test_coco_boxes_are_shares_of_the_image(tmp_path):
  write_coco(tmp_path / 'train')
  source = dense_folders.open_dense(str(tmp_path), 'train')
  assert isinstance(source, dense.Boxed)
  assert source.box_classes == ('dog', 'cat')  # by id
  assert [source.record_id(k) for k in range(2)] == ['y.png', 'x.png']
  assert len(source.boxes(0).corners) == 0
  boxes = source.boxes(1)
  np.testing.assert_allclose(
    boxes.corners, [[0.25, 0, 0.75, 0.5], [0.5, 0.5, 1, 1]]
  )
  assert boxes.classes.tolist() == [1, 0]
  assert boxes.crowd.tolist() == [False, True]
  assert source.size(1) == (20, 10)
  assert source[1]['image'].startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'categories': []}, r'KeyError'),
    ({'images': [{'id': 7}]}, "KeyError: 'width'"),
    ({'annotations': [{'bbox': [1, 2]}]}, 'ValueError'),
    ({'annotations': [{'bbox': [8, 8, -4, 4]}]}, r'bbox \[8, 8, -4, 4\]'),
    ({'annotations': [{'bbox': [1, 1, 4, math.nan]}]}, r'bbox \[1, 1, 4, nan'),
    ({'annotations': [{'bbox': [math.inf, 1, 4, 4]}]}, r'bbox \[inf, 1, 4, 4'),
  ],
)
def test_what_is_not_cocos_format_is_one_line(tmp_path, change, message):
  write_coco(tmp_path, COCO | change)
  with pytest.raises(errors.UserError, match=message) as caught:
    dense_folders.open_dense(str(tmp_path), 'train')
  assert 'annotations.json' in str(caught.value)


def test_splits_are_sub_folders(masks, tmp_path_factory):
  assert dense_folders.split_names(str(masks[0])) == ['test', 'train']
  root = tmp_path_factory.mktemp('coco')
  assert dense_folders.split_names(str(root)) == []
  write_coco(root / 'val')
  assert dense_folders.split_names(str(root)) == ['val']
  write_coco(root)
  assert dense_folders.split_names(str(root)) == ['train']


def test_masks_and_boxes_of_scenes_are_those_of_the_scene():
  source = scenes.ScenesSource('test', 48)
  assert isinstance(source, dense.Masked)
  assert isinstance(source, dense.Boxed)
  for index in range(20):
    scene, mask, boxes = (
      source.scene(index),
      source.mask(index),
      source.boxes(index),
    )
    np.testing.assert_array_equal(mask > 0, scene.masks.any(0))
    kinds = [source.mask_classes[number] for number in np.unique(mask)]
    assert set(kinds) - {'background'} == {o.shape for o in scene.objects}
    np.testing.assert_allclose(boxes.corners * 48, scene.boxes, rtol=1e-6)
    assert [source.box_classes[number] for number in boxes.classes] == [
      item.shape for item in scene.objects
    ]


def test_whole_image_cuts_nothing_off():
  image = np.zeros((10, 40, 3), np.uint8)
  image[:, :10] = 200  # the leftmost quarter
  found = transforms.apply(
    image, transforms.WholeImage(8), np.random.default_rng(0)
  )
  assert found.shape == (8, 8, 3)
  assert (found[:, 0] == 200).all()
  assert (found[:, 3:] == 0).all()
