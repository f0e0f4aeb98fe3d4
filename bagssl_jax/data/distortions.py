"""What fifteen corruptions do to an image: after Hendrycks and Dietterich (ICLR 2019).

Each takes an image, float64 [h w 3] in [0, 1] and RGB, a generator of random numbers, and the
strengths that `corruptions` has, and gives an image in [0, 1], or one that is to be clipped to it.
The definitions are those of make_cifar_c.py and make_imagenet_c.py (github.com/hendrycks/
robustness), for images of any size; `frost` alone is not: see there. Lengths are in pixels, unless
they are said to be shares of the shorter side.
"""

import io

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import color

Rng = np.random.Generator


def gaussian_noise(x: np.ndarray, rng: Rng, deviation: float) -> np.ndarray:
    """Normal noise on every number."""
    return x + rng.normal(size=x.shape, scale=deviation)


def shot_noise(x: np.ndarray, rng: Rng, photons: float) -> np.ndarray:
    """Counts of so many photons a full number, Poisson's."""
    return rng.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, rng: Rng, amount: float) -> np.ndarray:
    """That share of the numbers becomes 0 or 1, salt and pepper in every channel of its own."""
    drawn = rng.random(x.shape)
    return np.where(drawn < amount / 2, 0, np.where(drawn > 1 - amount / 2, 1, x))


def defocus_blur(x: np.ndarray, rng: Rng, radius: float, soft: float) -> np.ndarray:
    """The mean over a disk whose edge is softened by a Gaussian of deviation `soft`."""
    reach = max(8, int(radius))
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(disk / disk.sum(), (side, side), soft)
    return cv2.filter2D(x, -1, kernel)


def glass_blur(x: np.ndarray, rng: Rng, sigma: float, reach: int, times: int) -> np.ndarray:
    """Between two Gaussian blurs, pixels take the values of near ones.

    The published data sets were made so: their code was meant to swap pixels, and copies them.
    """
    height, width = x.shape[:2]
    taken = np.arange(height * width).tolist()  # a list is several times as fast one by one
    for _ in range(times):
        places = [
            (i, j)
            for i in range(height - reach, reach, -1)
            for j in range(width - reach, reach, -1)
        ]
        steps = rng.integers(-reach, reach, size=(len(places), 2)).tolist()
        for (i, j), (right, down) in zip(places, steps, strict=True):
            taken[i * width + j] = taken[(i + down) * width + j + right]
    blurred = np.floor(_blurred(x, sigma) * 255) / 255
    return _blurred(blurred.reshape(-1, 3)[taken].reshape(x.shape), sigma)


def motion_blur(x: np.ndarray, rng: Rng, radius: int, sigma: float) -> np.ndarray:
    """Half a Gaussian along a line that lies within 45 degrees of the horizontal."""
    return np.rint(_moved(x, radius, sigma, rng.uniform(-45, 45)) * 255) / 255


def zoom_blur(x: np.ndarray, rng: Rng, end: float, step: float) -> np.ndarray:
    """The mean of the image and of it magnified 1, 1 + step, ... times, below `end`."""
    factors = np.arange(1, end, step)
    return (x + sum(_magnified(x, factor) for factor in factors)) / (len(factors) + 1)


def snow(
    x: np.ndarray,
    rng: Rng,
    mean: float,
    deviation: float,
    zoom: float,
    least: float,
    radius: int,
    sigma: float,
    kept: float,
) -> np.ndarray:
    """Magnified flakes of normal noise above `least`, that fall, over an image that whitens."""
    flakes = _magnified(rng.normal(mean, deviation, x.shape[:2]), zoom)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = np.floor(flakes * 255) / 255
    flakes = np.rint(_moved(flakes, radius, sigma, rng.uniform(-135, -45)) * 255) / 255
    grey = cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2GRAY)
    x = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey[..., None] + 0.5)
    return x + (flakes + np.rot90(flakes, 2))[..., None]


def frost(x: np.ndarray, rng: Rng, kept: float, added: float) -> np.ndarray:
    """A bluish-grey texture of streaks is added to a darkened image.

    The published data sets add crops of six photographs of frost, which cannot be had with this
    package: this texture is drawn with their mean grey levels and deviation. So accuracies are
    not to be compared with those on the published frost.
    """
    height, width = x.shape[:2]
    dark, light = np.array([0.28, 0.42, 0.47]), np.array([0.78, 0.8, 0.84])  # of the photographs
    tint = dark + rng.random() * (light - dark)
    streaks = _moved(rng.normal(size=(height, width)), 3, 1.5, rng.uniform(0, 360))
    clouds = _clouds(height, width, 2.0, rng)
    texture = 0.13 * streaks / max(streaks.std(), 1e-6) + 0.3 * (clouds - clouds.mean())
    return kept * x + added * np.clip(tint + texture[..., None], 0, 1)


def fog(x: np.ndarray, rng: Rng, amount: float, decay: float) -> np.ndarray:
    """Clouds are added, and the brightest number is brought back to what it was."""
    brightest = x.max()
    clouds = _clouds(*x.shape[:2], decay, rng)
    return (x + amount * clouds[..., None]) * brightest / (brightest + amount)


def brightness(x: np.ndarray, rng: Rng, added: float) -> np.ndarray:
    """To the value of HSV."""
    hsv = color.rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return color.hsv2rgb(hsv)


def contrast(x: np.ndarray, rng: Rng, factor: float) -> np.ndarray:
    """Around the mean of every channel."""
    mean = x.mean(axis=(0, 1))
    return (x - mean) * factor + mean


def elastic_transform(
    x: np.ndarray, rng: Rng, amount: float, sigma: float, affine: float
) -> np.ndarray:
    """A random affine map, then displacements of smoothed noise; all shares of the shorter side."""
    height, width = x.shape[:2]
    side = min(height, width)
    centre = np.array([height // 2, width // 2], np.float32)
    arm = max(1, side // 3)
    corners = centre + np.float32([[arm, arm], [arm, -arm], [-arm, -arm]])
    moved = corners + rng.uniform(-affine * side, affine * side, corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    x = cv2.warpAffine(
        x.astype(np.float32), matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101
    )
    right, down = (
        amount
        * side
        * ndimage.gaussian_filter(
            rng.uniform(-1, 1, (height, width)), sigma * side, mode='reflect', truncate=3
        )
        for _ in range(2)
    )
    places = np.arange(height)[:, None] + down, np.arange(width) + right
    channels = [
        ndimage.map_coordinates(x[..., i], places, order=1, mode='reflect') for i in range(3)
    ]
    return np.stack(channels, axis=-1)


def pixelate(x: np.ndarray, rng: Rng, factor: float) -> np.ndarray:
    """Made smaller by that factor and large again, by areas."""
    height, width = x.shape[:2]
    smaller = max(1, int(width * factor)), max(1, int(height * factor))
    image = _pillow(x).resize(smaller, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg_compression(x: np.ndarray, rng: Rng, quality: int) -> np.ndarray:
    """Pillow's JPEG of that quality."""
    file = io.BytesIO()
    _pillow(x).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file)) / 255


def _pillow(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


def _blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode='nearest', truncate=4)


def _moved(x: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """ImageMagick's motion blur: half a Gaussian of 2 radius + 1 pixels, with edges repeated."""
    along = np.arange(2 * radius + 1)
    weights = np.exp(-(along**2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    down, right = (
        np.ceil(along * direction - 0.5).astype(int) for direction in (np.sin(angle), np.cos(angle))
    )
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    np.add.at(kernel, (2 * radius + down, 2 * radius + right), weights / weights.sum())
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _magnified(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of [h w ...] magnified, linear between pixels: [h w ...]."""
    height, width = x.shape[:2]
    h, w = (int(np.ceil(side / factor)) for side in (height, width))
    y, z = (height - h) // 2, (width - w) // 2
    middle = x[y : y + h, z : z + w]
    large = ndimage.zoom(middle, (factor, factor, 1)[: x.ndim], order=1)
    y, z = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[y : y + height, z : z + width]


def _clouds(height: int, width: int, decay: float, rng: Rng) -> np.ndarray:
    """A plasma fractal by the diamond-square algorithm, on a torus: [height width] from 0 to 1.

    At every halving of the distance of the points, the noise that is added falls by decay squared.
    """
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    heights = np.zeros((side, side))
    step, amplitude = side, 1.0

    def around(total: np.ndarray) -> np.ndarray:
        return total / 4 + amplitude * rng.uniform(-1, 1, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        below, beside = np.roll(corners, -1, axis=0), np.roll(corners, -1, axis=1)
        centres = around(corners + below + beside + np.roll(below, -1, axis=1))
        heights[half::step, half::step] = centres
        heights[::step, half::step] = around(corners + beside + centres + np.roll(centres, 1, 0))
        heights[half::step, ::step] = around(corners + below + centres + np.roll(centres, 1, 1))
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min()
    return (heights / heights.max())[:height, :width]
