"""Views by their definitions, one pixel after the other, in Python's unbounded integers: an oracle for every operation.

A picture is a list of channels of rows of numbers.
"""

import itertools
import math
from bisect import bisect_left

import numpy as np

from sskt.views import Recipe

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
NAMES = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


def slow_mix(bits: int) -> int:
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def slow_hash(seed: int, *counters: int) -> int:
    """The definition in Python's integers: no wrap-around to get wrong."""
    bits = seed & MASK
    for counter in counters:
        bits = slow_mix(((bits + GOLDEN) & MASK) ^ ((counter * GOLDEN) & MASK))
    return bits


def slow_draw(recipe: Recipe, ids: int, view: int, operation: int, number: int, bound: int) -> int:
    return ((slow_hash(recipe.seed, ids, view, operation, number) >> 33) * bound) >> 31


def cut(value: int) -> int:
    return min(max(value, 0), 255)


def each(picture, change):
    """change: (value, channel, y, x) -> value."""
    return [
        [[change(value, channel, y, x) for x, value in enumerate(row)] for y, row in enumerate(rows)]
        for channel, rows in enumerate(picture)
    ]


def moved(picture, back):
    """back: (y, x) -> the y, x it shows; black outside."""
    size = len(picture[0])

    def shown(_value, channel, y, x):
        y, x = back(y, x)
        return picture[channel][y][x] if 0 <= y < size and 0 <= x < size else 0

    return each(picture, shown)


def blend(picture, base, factor):
    """base: (channel, y, x) -> value; factor in 1/256."""
    return each(picture, lambda value, c, y, x: cut((value * factor + base(c, y, x) * (256 - factor) + 128) // 256))


def grey(picture):
    if len(picture) != 3:
        return picture
    luma = [
        [(19595 * red + 38470 * green + 7471 * blue + 32768) // 65536 for red, green, blue in zip(*rows, strict=True)]
        for rows in zip(*picture, strict=True)
    ]
    return [luma, luma, luma]


def brightness(picture, factor):
    return blend(picture, lambda c, y, x: 0, factor)


def contrast(picture, factor):
    values = [value for rows in (grey(picture)[:1] if len(picture) == 3 else picture) for row in rows for value in row]
    mean = (sum(values) + len(values) // 2) // len(values)
    return blend(picture, lambda c, y, x: mean, factor)


def saturation(picture, factor):
    shades = grey(picture)
    return blend(picture, lambda c, y, x: shades[c][y][x], factor)


def sharpness(picture, factor):
    last = len(picture[0]) - 1

    def blurred(c, y, x):
        if y in (0, last) or x in (0, last):
            return picture[c][y][x]
        around = sum(picture[c][y + down][x + right] for down in (-1, 0, 1) for right in (-1, 0, 1))
        return (around + 4 * picture[c][y][x] + 6) // 13

    return blend(picture, blurred, factor)


def solarize(picture, threshold):
    return each(picture, lambda value, c, y, x: 255 - value if value >= threshold else value)


def posterize(picture, bits):
    return each(picture, lambda value, c, y, x: value >> (8 - bits) << (8 - bits))


def invert(picture):
    return each(picture, lambda value, c, y, x: 255 - value)


def autocontrast(picture):
    edges = [(min(map(min, rows)), max(map(max, rows))) for rows in picture]

    def spread(value, c, _y, _x):
        low, high = edges[c]
        if low == high:
            return value
        scale = (255 * 65536 + (high - low) // 2) // (high - low)
        return ((value - low) * scale + 32768) // 65536

    return each(picture, spread)


def equalize(picture):
    """The table of each channel as PIL's ImageOps.equalize defines it."""
    tables = []
    for rows in picture:
        values = sorted(value for row in rows for value in row)
        step = (len(values) - values.count(values[-1])) // 255
        below = [bisect_left(values, level) for level in range(256)]
        tables.append([min((count + step // 2) // step, 255) for count in below] if step else list(range(256)))
    return each(picture, lambda value, c, y, x: tables[c][value])


def random_resized_crop(picture, draw, values):
    smallest, largest, narrowest, widest = values
    area = smallest + draw(0, largest - smallest + 1)
    low, high = math.log(narrowest / 65536), math.log(widest / 65536)
    root = round(65536 * math.exp((low + (high - low) * draw(1, 257) / 256) / 2))
    width = max(min(math.isqrt(area << 22) * root // 65536, 65536), area * 64)
    height = area * 64 * 65536 // width
    top, left = draw(2, 65537 - height), draw(3, 65537 - width)
    return stretch(picture, top=top, left=left, height=height, width=width)


def stretch(picture, *, top, left, height, width):
    size = len(picture[0])

    def place(start, length, number):
        exact = start * size + length * (2 * number + 1) // 2 - 32768  # 1/65536 pixels
        return min(max((exact + 128) // 256, 0), (size - 1) * 256)

    def mixed(_value, c, y, x):
        (y, down), (x, right) = divmod(place(top, height, y), 256), divmod(place(left, width, x), 256)
        below, beside = min(y + 1, size - 1), min(x + 1, size - 1)
        upper = (256 - right) * picture[c][y][x] + right * picture[c][y][beside]
        lower = (256 - right) * picture[c][below][x] + right * picture[c][below][beside]
        return ((256 - down) * upper + down * lower + 32768) // 65536

    return each(picture, mixed)


def augmented(picture, name, magnitude, sign):
    """One operation of RandAugment, by its name."""
    size, factor = len(picture[0]), 256 + sign * ((768 * magnitude + 50) // 100)
    slope, step = sign * ((65536 * magnitude + 50) // 100), sign * (5 * magnitude * size // 331)
    angle = math.radians(magnitude)
    sine, cosine = sign * round(65536 * math.sin(angle)), round(65536 * math.cos(angle))

    def turned(y, x):
        y, x = 2 * y + 1 - size, 2 * x + 1 - size
        return (cosine * y + sine * x + 65536 * size) // 131072, (cosine * x - sine * y + 65536 * size) // 131072

    changes = {
        "identity": lambda: picture,
        "shear_x": lambda: moved(picture, lambda y, x: (y, (65536 * (2 * x + 1) + slope * (2 * y + 1)) // 131072)),
        "shear_y": lambda: moved(picture, lambda y, x: ((65536 * (2 * y + 1) + slope * (2 * x + 1)) // 131072, x)),
        "translate_x": lambda: moved(picture, lambda y, x: (y, x - step)),
        "translate_y": lambda: moved(picture, lambda y, x: (y - step, x)),
        "rotate": lambda: moved(picture, turned),
        "brightness": lambda: brightness(picture, factor),
        "saturation": lambda: saturation(picture, factor),
        "contrast": lambda: contrast(picture, factor),
        "sharpness": lambda: sharpness(picture, factor),
        "posterize": lambda: posterize(picture, 8 - round(magnitude * 4 / 30)),
        "solarize": lambda: solarize(picture, math.ceil(255 - 8.5 * magnitude)),
        "autocontrast": lambda: autocontrast(picture),
        "equalize": lambda: equalize(picture),
    }
    assert tuple(changes) == NAMES
    return changes[name]()


def rand_augment(picture, draw, values):
    number, magnitude = values
    for layer in range(number):
        name, sign = NAMES[draw(2 * layer, 14)], 1 - 2 * draw(2 * layer + 1, 2)
        picture = augmented(picture, name, magnitude, sign)
    return picture


def by_factor(change):
    return lambda picture, draw, values: change(picture, 256 - values[0] + draw(0, 2 * values[0] + 1))


def at_times(change):
    return lambda picture, draw, values: change(picture, *values[:-1]) if draw(0, 65536) < values[-1] else picture


CHANGES = {
    "random_resized_crop": random_resized_crop,
    "brightness": by_factor(brightness),
    "contrast": by_factor(contrast),
    "saturation": by_factor(saturation),
    "sharpness": by_factor(sharpness),
    "grayscale": at_times(grey),
    "invert": at_times(invert),
    "autocontrast": at_times(autocontrast),
    "equalize": at_times(equalize),
    "solarize": at_times(solarize),
    "posterize": at_times(posterize),
    "rand_augment": rand_augment,
}


def moved_whole(name: str, image: np.ndarray, draw, pixels: int) -> np.ndarray:
    """The operations that move whole pixels, as a person would with NumPy. image: [C, S, S]."""
    size = image.shape[-1]
    if name == "pad_crop":
        top, left = draw(0, 2 * pixels + 1), draw(1, 2 * pixels + 1)
        padded = np.pad(image, ((0, 0), (pixels, pixels), (pixels, pixels)))
        return padded[:, top : top + size, left : left + size]
    if name == "hflip":
        return image[:, :, ::-1] if draw(0, 2) else image
    if name == "rot90":
        return np.rot90(image, draw(0, 4), axes=(1, 2))
    assert name == "cutout"
    top, left = draw(0, size) - pixels // 2, draw(1, size) - pixels // 2
    image = image.copy()
    image[:, max(top, 0) : max(top + pixels, 0), max(left, 0) : max(left + pixels, 0)] = 0
    return image


def slow_view(recipe: Recipe, image: np.ndarray, sample: int, view: int) -> np.ndarray:
    """Apply the operations one after the other. image: [C, S, S]."""
    for index, operation in enumerate(recipe.operations):

        def draw(number: int, bound: int, index: int = index) -> int:
            return slow_draw(recipe, sample, view, index, number, bound)

        if operation.name in CHANGES:
            image = np.array(CHANGES[operation.name](image.tolist(), draw, operation.values), dtype=np.uint8)
        else:
            image = moved_whole(operation.name, image, draw, *operation.values or (0,))
    return image


def slow_partner(recipe: Recipe, sample: int, view: int, edges: tuple[int, ...]) -> int:
    """One of the others of its 64, counted from the one after itself; alone, itself."""
    first, stop = next((one, other) for one, other in itertools.pairwise(edges) if one <= sample < other)
    begin = first + (sample - first) // 64 * 64
    group = list(range(begin, min(begin + 64, stop)))
    others = group[group.index(sample) + 1 :] + group[: group.index(sample)]
    return others[slow_draw(recipe, sample, view, 0, 0, len(others))] if others else sample


def slow_mixed(recipe: Recipe, images: np.ndarray, sample: int, view: int, edges: tuple[int, ...]) -> np.ndarray:
    """A mixed view, the images' ids being their rows: [C, S, S]."""
    number, upright = divmod(view, 1 << 20)
    partner = slow_partner(recipe, sample, view, edges)
    own, other = (slow_view(recipe, images[one], one, upright).astype(int) for one in (sample, partner))
    if number == 4:
        weight = slow_draw(recipe, sample, view, 1, 0, 257)
        return (weight * own + (256 - weight) * other + 128) // 256
    assert number == 5
    size = own.shape[-1]
    centre = [slow_draw(recipe, sample, view, 1, draw, size) for draw in (0, 1)]
    side = math.isqrt(size * size * slow_draw(recipe, sample, view, 1, 2, 257) // 256)
    mixed = own.copy()
    for y, x in itertools.product(range(size), repeat=2):
        top, left = centre[0] - side // 2, centre[1] - side // 2
        if top <= y < top + side and left <= x < left + side:
            mixed[:, y, x] = other[:, y, x]
    return mixed
