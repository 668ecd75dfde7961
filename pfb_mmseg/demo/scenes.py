"""A data set made by code: small outdoor scenes in kinds of very unequal frequency.

No file is read. An image is a function of (split, index, size) alone.
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import BaseStorageBackend, register_backend
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS

from ..core.checks import check_choice, check_integer, check_sizes

IGNORE = 255
SPLITS = ('train', 'val')
_MIN_SIDE = 32
_GOLDEN = (math.sqrt(5) - 1) / 2
_PATH = re.compile(r'demo/(?P<split>\w+)/(?P<kind>\w+)/(?P<index>\d+)\.png')

Point = tuple[float, float]


class _Look(NamedTuple):
    """How a class looks (RGB, 0 to 255)."""

    palette: list[int]  # in overlays
    colour: tuple[int, int, int]  # in a scene
    spread: float  # standard deviation of the colour between images
    roughness: float  # amplitude of the texture within an image


_LOOKS = {
    'sky': _Look([70, 130, 180], (150, 185, 220), 26, 5),
    'grass': _Look([152, 251, 152], (105, 140, 65), 22, 22),
    'tree': _Look([34, 110, 34], (60, 95, 50), 18, 30),
    'animal': _Look([255, 105, 180], (150, 110, 80), 40, 22),
    'road': _Look([128, 64, 128], (105, 105, 108), 14, 12),
    'building': _Look([70, 70, 70], (150, 125, 110), 34, 14),
    'car': _Look([0, 0, 142], (130, 110, 110), 60, 8),
    'water': _Look([0, 191, 255], (70, 115, 150), 18, 12),
    'boat': _Look([255, 140, 0], (190, 170, 160), 45, 8),
    'snow': _Look([245, 245, 245], (228, 232, 238), 8, 9),
    'lamp': _Look([255, 255, 0], (250, 225, 150), 12, 3),
    'sand': _Look([210, 180, 140], (214, 182, 122), 14, 13),
    'cactus': _Look([0, 255, 127], (75, 125, 75), 14, 16),
}
CLASSES = tuple(_LOOKS)
_LABEL = {name: label for label, name in enumerate(CLASSES)}
_COLOUR = np.array([look.colour for look in _LOOKS.values()], dtype=np.float32)
_SPREAD = np.array([[look.spread] for look in _LOOKS.values()], dtype=np.float32)
_ROUGHNESS = np.full(IGNORE + 1, 15, dtype=np.float32)
_ROUGHNESS[: len(CLASSES)] = [look.roughness for look in _LOOKS.values()]


@lru_cache
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row (H, 1) and column (1, W) coordinates in [0, 1)."""
    rows = np.arange(height, dtype=np.float32)[:, None] / height
    columns = np.arange(width, dtype=np.float32)[None] / width
    return rows, columns


def _span(low: float, high: float, length: int) -> slice:
    """The pixels from ``low`` to ``high``, at least one unless outside of the canvas."""
    first, last = round(low * length), round(high * length)
    return slice(max(0, first), max(0, last, first + 1))


class _Scene:
    """A canvas whose colours and labels are painted together, in coordinates from 0 to 1."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], variety: float) -> None:
        self.rng = rng
        self.variety = variety
        self.height, self.width = size
        self.colour = np.empty((*size, 3), dtype=np.float32)
        self.labels = np.empty(size, dtype=np.uint8)
        jitter = rng.standard_normal((len(CLASSES), 4), dtype=np.float32)
        # Classes change more in brightness, which the channels share, than in hue.
        self.inks = _COLOUR + variety * _SPREAD * (jitter[:, :1] + 0.5 * jitter[:, 1:])

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def several(self, low: int, high: int) -> range:
        return range(self.rng.integers(low, high + 1))

    def ink(self, name: str) -> np.ndarray:
        """A colour of the class for one object, unlike its other objects' in this image."""
        return self.inks[_LABEL[name]] + _LOOKS[name].spread * self.rng.standard_normal(3)

    def polygon(self, points: list[Point], name: str, ink: np.ndarray | None = None) -> None:
        """Paint a polygon of (x, y), in the colour that the class has in this image if not told."""
        ink = self.inks[_LABEL[name]] if ink is None else ink
        corners = np.rint(np.array(points) * (self.width, self.height)).astype(np.int32)
        cv2.fillPoly(self.labels, [corners], _LABEL[name])
        cv2.fillPoly(self.colour, [corners], ink.tolist())

    def box(
        self, left: float, top: float, right: float, bottom: float, name: str, ink: np.ndarray
    ) -> None:
        pixels = _span(top, bottom, self.height), _span(left, right, self.width)
        self.labels[pixels] = _LABEL[name]
        self.colour[pixels] = ink

    def disc(
        self, x: float, y: float, rx: float, ry: float, label: int, ink: np.ndarray, turn: float = 0
    ) -> None:
        """Paint a filled ellipse, turned by ``turn`` degrees."""
        centre = (round(x * self.width), round(y * self.height))
        axes = (max(1, round(rx * self.width)), max(1, round(ry * self.height)))
        cv2.ellipse(self.labels, centre, axes, turn, 0, 360, label, cv2.FILLED)
        cv2.ellipse(self.colour, centre, axes, turn, 0, 360, ink.tolist(), cv2.FILLED)

    def backdrop(self, ground: str, low: float = 0.3, high: float = 0.55) -> float:
        """Paint sky above ``ground`` with a slanted, bent horizon; return its height."""
        horizon, slant, bend = self.between(low, high), self.between(-0.06, 0.06), 0.05
        self.colour[:], self.labels[:] = self.inks[_LABEL['sky']], _LABEL['sky']
        middle = (self.between(0.3, 0.7), horizon + self.between(-bend, bend))
        edge = [(-0.1, horizon - slant), middle, (1.1, horizon + slant)]
        self.polygon([*edge, (1.1, 1.1), (-0.1, 1.1)], ground)
        return horizon

    def waves(self, name: str, amplitude: float, frequency: float, slope: float) -> None:
        """Add a striped texture to the pixels of a class."""
        rows, columns = _grid(self.height, self.width)
        phase = self.between(0, 2 * math.pi)
        stripes = np.sin(2 * math.pi * frequency * (rows + slope * columns) + phase)
        self.colour += (amplitude * stripes * (self.labels == _LABEL[name]))[..., None]

    # The things that stand in a scene: (x, y) is the point where they meet the ground.

    def tree(self, x: float, y: float, s: float) -> None:
        trunk = np.array([80.0, 60.0, 45.0])
        self.box(x - 0.015 * s, y - 0.2 * s, x + 0.015 * s, y, 'tree', trunk)
        ink = self.ink('tree')
        if self.chance(0.4):  # a fir
            foot = y - 0.08 * s
            self.polygon([(x - 0.1 * s, foot), (x, y - 0.5 * s), (x + 0.1 * s, foot)], 'tree', ink)
            return
        for _ in self.several(2, 4):
            dx, dy = self.between(-0.07, 0.07) * s, self.between(-0.4, -0.2) * s
            r = self.between(0.06, 0.11) * s
            self.disc(x + dx, y + dy, r, r, _LABEL['tree'], ink + self.between(-15, 15))

    def animal(self, x: float, y: float, s: float) -> None:
        ink, label = self.ink('animal'), _LABEL['animal']
        side = 1 if self.chance(0.5) else -1
        for leg in (-0.06, 0.06):
            self.box(x + (leg - 0.01) * s, y - 0.08 * s, x + (leg + 0.01) * s, y, 'animal', ink)
        self.disc(x, y - 0.11 * s, 0.1 * s, 0.055 * s, label, ink)
        self.disc(x + side * 0.11 * s, y - 0.16 * s, 0.04 * s, 0.035 * s, label, ink)
        if self.chance(0.5):  # a patched coat
            self.disc(x - side * 0.03 * s, y - 0.12 * s, 0.04 * s, 0.03 * s, label, 255 - ink)

    def building(self, left: float, right: float, top: float, bottom: float) -> None:
        ink = self.ink('building')
        self.box(left, top, right, bottom, 'building', ink)
        if self.chance(0.4):  # a gable
            peak = ((left + right) / 2, top - self.between(0.04, 0.12))
            self.polygon([(left, top), peak, (right, top)], 'building', self.ink('building'))
        step, rows, columns = self.between(0.07, 0.11), *_grid(self.height, self.width)
        high = (top + 0.03 < rows) & (rows < bottom - 0.05) & ((rows - top) % step < 0.03)
        wide = (left + 0.03 < columns) & (columns < right - 0.03) & ((columns - left) % step < 0.03)
        self.colour[high & wide] = ink * self.between(0.45, 1.35)

    def car(self, x: float, y: float, s: float) -> None:
        ink = self.ink('car')
        self.box(x - 0.14 * s, y - 0.12 * s, x + 0.14 * s, y - 0.02 * s, 'car', ink)
        low, high = y - 0.12 * s, y - 0.2 * s
        roof = [(x - 0.1 * s, low), (x - 0.06 * s, high), (x + 0.06 * s, high), (x + 0.11 * s, low)]
        self.polygon(roof, 'car', ink * 0.55)
        for wheel in (-0.08, 0.08):
            tyre = np.full(3, 35.0)
            self.disc(x + wheel * s, y - 0.02 * s, 0.03 * s, 0.03 * s, _LABEL['car'], tyre)

    def boat(self, x: float, y: float, s: float) -> None:
        deck, mast = y - 0.09 * s, y - self.between(0.3, 0.55) * s
        bow, stern = x + 0.2 * s, x - 0.19 * s
        hull = [(stern, deck), (bow, deck), (x + 0.12 * s, y), (x - 0.13 * s, y)]
        self.polygon(hull, 'boat', self.ink('boat'))
        if self.chance(0.7):
            sail = [(x, deck), (x, mast), (x + self.between(0.12, 0.2) * s, deck)]
            self.polygon(sail, 'boat', self.ink('boat'))

    def lamp(self, x: float, y: float, s: float) -> Point:
        """Paint a street lamp and return where its light is."""
        top = y - self.between(0.3, 0.45) * s
        self.box(x - 0.03 * s, top, x + 0.03 * s, y, 'lamp', np.full(3, 90.0))
        self.disc(x, top, 0.1 * s, 0.08 * s, _LABEL['lamp'], self.inks[_LABEL['lamp']])
        return x, top

    def cactus(self, x: float, y: float, s: float) -> None:
        ink = self.ink('cactus')
        self.box(x - 0.055 * s, y - 0.45 * s, x + 0.055 * s, y, 'cactus', ink)
        for side in (-1, 1):
            if self.chance(0.75):
                arm, elbow = x + side * 0.16 * s, y - self.between(0.15, 0.28) * s
                left, right = arm - 0.04 * s, arm + 0.04 * s
                self.box(min(x, arm), elbow, max(x, arm), elbow + 0.08 * s, 'cactus', ink)
                self.box(left, elbow - 0.13 * s, right, elbow + 0.08 * s, 'cactus', ink)

    def scatter(
        self, thing: Callable[[float, float, float], Any], counts: tuple[int, int], horizon: float
    ) -> list[Any]:
        """Put a number of things on the ground, the nearest last and largest."""
        feet = sorted(self.between(horizon, 0.98) for _ in self.several(*counts))
        return [
            thing(self.between(0.02, 0.98), foot, 0.9 + 1.1 * (foot - horizon) / (1 - horizon))
            for foot in feet
        ]


def _meadow(scene: _Scene) -> None:
    horizon = scene.backdrop('grass')
    scene.scatter(scene.tree, (0, 4), horizon)
    scene.scatter(scene.animal, (0, 3), horizon)


def _street_front(scene: _Scene) -> float:
    horizon = scene.backdrop('road', 0.42, 0.6)
    left = scene.between(-0.1, 0.1)
    while left < 0.95:
        right = left + scene.between(0.15, 0.35)
        scene.building(left, right, scene.between(0.05, 0.35), horizon + 0.04)
        left = right + max(0.0, scene.between(-0.1, 0.12))
    return horizon


def _street(scene: _Scene) -> None:
    horizon = _street_front(scene)
    scene.scatter(scene.tree, (0, 2), horizon)
    scene.scatter(scene.car, (0, 3), horizon + 0.08)


def _coast(scene: _Scene) -> None:
    horizon = scene.backdrop('water')
    scene.waves('water', 12, scene.between(8, 14), scene.between(-0.3, 0.3))
    scene.scatter(scene.boat, (1, 3), horizon)
    if scene.chance(0.4):
        left, right = scene.between(0.8, 0.95), scene.between(0.75, 0.95)
        scene.polygon([(-0.1, left), (1.1, right), (1.1, 1.1), (-0.1, 1.1)], 'grass')


def _winter(scene: _Scene) -> None:
    horizon = scene.backdrop('snow')
    scene.scatter(scene.tree, (1, 4), horizon)
    scene.scatter(scene.animal, (0, 1), horizon)


def _night(scene: _Scene) -> None:
    horizon = _street_front(scene)
    scene.scatter(scene.car, (0, 2), horizon + 0.08)
    lights = scene.scatter(scene.lamp, (1, 3), horizon + 0.1)
    moonlight = scene.between(0.6, 1.6)
    scene.colour *= moonlight * np.array([0.24, 0.27, 0.36], dtype=np.float32)
    shine = scene.between(0.6, 1.2) * np.array([170, 140, 80]) + 30 * scene.rng.standard_normal(3)
    rows, columns = _grid(scene.height, scene.width)
    for x, y in lights:
        glow = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 0.015)
        scene.colour += glow[..., None] * shine


def _desert(scene: _Scene) -> None:
    horizon = scene.backdrop('sand')
    scene.waves('sand', 10, scene.between(5, 9), scene.between(-1.0, 1.0))
    scene.scatter(scene.cactus, (1, 4), horizon)


class _Kind(NamedTuple):
    share: float  # of the images of a split
    variety: float  # of its colours and its light
    paint: Callable[[_Scene], None]


# Common scenes are also much alike, rare ones vary: density is a matter of both.
_KINDS = {
    'meadow': _Kind(0.45, 0.4, _meadow),
    'street': _Kind(0.26, 0.5, _street),
    'coast': _Kind(0.13, 0.8, _coast),
    'winter': _Kind(0.07, 1.3, _winter),
    'night': _Kind(0.05, 1.5, _night),
    'desert': _Kind(0.04, 1.3, _desert),
}
KIND_SHARES = {name: kind.share for name, kind in _KINDS.items()}


def _finish(scene: _Scene) -> np.ndarray:
    """Dirt, texture, light and sensor noise; returns (H, W, 3) uint8 in RGB."""
    rng, size = scene.rng, (scene.height, scene.width)
    if scene.chance(0.2):
        place = [scene.between(0, 1), scene.between(0, 1)]
        radii = [scene.between(0.04, 0.12), scene.between(0.04, 0.12)]
        grey = np.full(3, scene.between(30, 200))
        scene.disc(*place, *radii, IGNORE, grey, turn=scene.between(0, 180))
    fine = rng.standard_normal(size, dtype=np.float32)
    coarse = cv2.resize(rng.standard_normal((8, 8), dtype=np.float32), size[::-1])
    scene.colour += (_ROUGHNESS[scene.labels] * (0.8 * fine + coarse))[..., None]

    rows, columns = _grid(*size)
    gain = scene.between(0.9 - 0.25 * scene.variety, 0.9 + 0.25 * scene.variety)
    tilt, lean = scene.variety * rng.uniform(-0.3, 0.3, 2)
    cast = 1 + 0.07 * scene.variety * rng.standard_normal(3, dtype=np.float32)
    light = gain * (1 + tilt * (columns - 0.5) + lean * (rows - 0.5))
    image = scene.colour * light[..., None] * cast
    haze = scene.between(0, 0.3 * scene.variety)
    image = (1 - haze) * image + haze * 150 * gain
    image += scene.between(3, 12) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def draw_scene(
    kind: str, split: str, index: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        kind: one of :data:`KIND_SHARES`.
        split: 'train' or 'val'.
        index: number of the image in its split.
        size: (height, width) in pixels.

    Returns:
        The image, (H, W, 3) uint8 in BGR as mmcv loads files, and the labels, (H, W) uint8 in
        ``range(len(CLASSES))`` or 255.
    """
    # The second zero keeps this stream apart from the one that deals out the kinds.
    rng = np.random.default_rng((0, SPLITS.index(split), 0, index))
    scene = _Scene(rng, size, _KINDS[kind].variety)
    _KINDS[kind].paint(scene)
    image = _finish(scene)
    return np.ascontiguousarray(image[..., ::-1]), scene.labels


@DATASETS.register_module()
class PFBDemoDataset(BaseSegDataset):
    """Small scenes made by code, in kinds of very unequal frequency.

    Six kinds of scene share a split as :data:`KIND_SHARES` says, from 45 % down to 4 %, exact to
    about one image for any length. Snow, lamps, sand and cacti occur in the three rarest kinds
    only. Colours, lighting, haze, texture, shapes and occlusion vary; dirt on the lens is labelled
    255. Image ``i`` of a split is the same for any ``length``; the splits share no image.

    ``img_path`` is no file but a name, ``demo/<split>/<kind>/<index>.png``, so that logs and
    records can tell the kind. Load with :class:`LoadDemoScene` and :class:`LoadDemoLabels`.

    Args:
        split: 'train' or 'val'.
        length: number of images, at least 1.
        size: (height, width) in pixels, at least 32 each.
        **kwargs: as for :class:`mmseg.datasets.BaseSegDataset`: ``pipeline``, ``metainfo``,
            ``indices``, ``test_mode``, ….

    Raises:
        TypeError, ValueError: an option is outside its range.
    """

    METAINFO = dict(classes=CLASSES, palette=[look.palette for look in _LOOKS.values()])

    def __init__(
        self,
        split: str = 'train',
        length: int = 2000,
        size: tuple[int, int] = (64, 64),
        **kwargs: Any,
    ) -> None:
        check_choice('split', split, SPLITS)
        check_integer('length', length, low=1)
        check_sizes('size', size, 2)
        if min(size) < _MIN_SIDE:
            raise ValueError(f'size={size!r}: expected at least {_MIN_SIDE} pixels a side')
        self.split, self.length, self.size = split, length, tuple(size)
        super().__init__(reduce_zero_label=False, **kwargs)

    @staticmethod
    def kind_of(img_path: str) -> str:
        """The kind of scene that an ``img_path`` of this data set names.

        Raises:
            ValueError: the path is not one of this data set's.
        """
        return _scene_of(img_path)['kind']

    def load_data_list(self) -> list[dict]:
        """List what each image is drawn from; nothing is drawn yet."""
        start = np.random.default_rng((0, SPLITS.index(self.split), 1)).random()
        # Steps of the golden ratio fill [0, 1) evenly, so every stretch of the split holds the
        # kinds in their shares, and a short one has its few rare images too.
        places = (start + _GOLDEN * np.arange(self.length)) % 1
        bounds = np.cumsum(list(KIND_SHARES.values()))[:-1]
        kinds = [tuple(_KINDS)[k] for k in np.searchsorted(bounds, places, side='right')]
        return [
            dict(
                img_path=f'demo/{self.split}/{kind}/{index:06d}.png',
                scene=dict(kind=kind, split=self.split, index=index, size=self.size),
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for index, kind in enumerate(kinds)
        ]


def _scene_of(img_path: str) -> dict[str, Any]:
    """What a scene is drawn from, but for its size."""
    found = _PATH.fullmatch(img_path)
    if not found or found['split'] not in SPLITS or found['kind'] not in _KINDS:
        raise ValueError(f'img_path={img_path!r}: expected demo/<split>/<kind>/<index>.png')
    return dict(kind=found['kind'], split=found['split'], index=int(found['index']))


class DemoSceneBackend(BaseStorageBackend):
    """Storage for MMEngine's ``fileio``, which draws the scene that ``img_path`` names: set
    ``backend_args=dict(backend='demo_scenes')`` where one reads images, as SegVisualizationHook.

    Args:
        size: (height, width) in pixels, as the data set's.
    """

    def __init__(self, size: tuple[int, int] = (64, 64)) -> None:
        self.size = tuple(size)

    def get(self, filepath: str) -> bytes:
        """The bytes of a PNG."""
        image, _ = draw_scene(**_scene_of(filepath), size=self.size)
        return cv2.imencode('.png', image)[1].tobytes()

    def get_text(self, filepath: str) -> str:
        raise NotImplementedError(f'{filepath}: a scene made by code is no text')


register_backend('demo_scenes', DemoSceneBackend, force=True)


@TRANSFORMS.register_module()
class LoadDemoScene(BaseTransform):
    """Draw a scene of :class:`PFBDemoDataset`; stands where others have LoadImageFromFile.

    Adds ``img`` (H, W, 3) uint8 in BGR, ``img_shape`` and ``ori_shape``; keeps the labels aside
    for :class:`LoadDemoLabels`.
    """

    def transform(self, results: dict) -> dict:
        results['img'], results['scene_labels'] = draw_scene(**results['scene'])
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadDemoLabels(BaseTransform):
    """Bring out the labels of a scene; stands where others have LoadAnnotations.

    Adds ``gt_seg_map`` (H, W) uint8. As with LoadAnnotations, transforms before it move the image
    only (test-time augmentation), transforms behind it move both.
    """

    def transform(self, results: dict) -> dict:
        labels = results.pop('scene_labels')
        if results['label_map'] is not None:
            table = np.full(IGNORE + 1, IGNORE, dtype=np.uint8)
            table[list(results['label_map'])] = list(results['label_map'].values())
            labels = table[labels]
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')
        return results
