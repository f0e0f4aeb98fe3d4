"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929), as timm and DINO have them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bagssl_jax.errors import InputError, check_known
from bagssl_jax.models.layers import scale_pixels, torch_bias, torch_uniform
from bagssl_jax.models.resnet import HALF

POOLS = ('mean', 'mean_norm', 'class')
REMAT = ('none', 'blocks')
EPSILON = 1e-6  # of LayerNorm, in timm and in DINO
# Their truncated normal is cut off at 2, which is a hundred deviations.
_init = nn.initializers.normal(0.02)


class ViT(nn.Module):
    """A transformer whose tokens are squares of pixels, normalised before each part of a block.

    Positions are learned, one a token. For inputs of another size they are interpolated as by
    timm's resample_abs_pos_embed: bicubic (a = -0.5, as Pillow's), with antialiasing where they
    shrink. DINO's own code interpolates with a = -0.75 and without antialiasing. Pixels at the
    right and at the bottom that do not fill a token are left out, as in DINO.

    Initialised as theirs: linear layers and positions by a normal of deviation .02, biases of
    zero, and the embedding of pixels as PyTorch's convolution, which it is there.

    Args:
      width: of a token, and of h.
      depth: number of blocks.
      heads: of attention.
      patch: side in pixels of a token.
      class_token: whether there is a token more, which belongs to no place.
      pool: what h is: 'mean' of the normalised tokens of the places; 'mean_norm', of the tokens,
        and normalised then, which timm calls fc_norm; or 'class', the normalised class token.
      image_size: side in pixels that the positions are of; 0: that of the input it is initialised
        with.
      dtype: of the computation. Parameters, LayerNorm, softmax and output are float32.
      mean, std: of the pixels, by channel, in [0, 1].
      remat: what the backward pass computes again instead of keeping it: 'none', or 'blocks'
        (inside blocks everything).
      norm_groups: of BatchNorm, of which there is none here.
    """

    width: int
    depth: int
    heads: int
    patch: int
    class_token: bool = False
    pool: str = 'mean'
    image_size: int = 0
    dtype: Any = jnp.float32
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    remat: str = 'none'
    norm_groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """RGB [n h w 3] in [0, 1] -> embedding h, float32 [n d], and {'map': [n h' w' d]}.

        Raises:
          InputError: the input is smaller than a token.
        """
        del train  # nothing differs
        x = self._squares(scale_pixels(x, self.mean, self.std))
        size = self.patch**2 * 3
        x = nn.Dense(
            self.width,
            dtype=self.dtype,
            kernel_init=torch_uniform,
            bias_init=torch_bias(size),
            name='embed',
        )(x)
        x = x + self._positions(x.shape[1:3])[None]
        n, rows, columns, _ = x.shape
        x = x.reshape(n, rows * columns, self.width)  # [n h' w' d] -> [n t d]
        if self.class_token:
            token, position = (
                self.param(name, _init, (self.width,), jnp.float32)
                for name in ('class_token', 'class_position')
            )
            first = (token + position).astype(self.dtype).reshape(1, 1, -1)
            x = jnp.concatenate([jnp.broadcast_to(first, (n, 1, self.width)), x], axis=1)
        block = nn.remat(_Block) if self.remat == 'blocks' else _Block
        for i in range(self.depth):
            x = block(self.heads, self.dtype, name=f'block{i + 1}')(x)
        norm = _layer_norm(self.dtype, 'norm')
        if self.pool == 'class':
            x = norm(x)
            return _finer(x[:, 0]), {'map': x[:, 1:].reshape(n, rows, columns, -1)}
        places = x[:, 1:] if self.class_token else x
        if self.pool == 'mean':
            places = norm(places)
            h = _finer(places).mean(axis=1)
        else:
            h = _finer(norm(_finer(places).mean(axis=1)))
        return h, {'map': places.reshape(n, rows, columns, -1)}

    def _squares(self, x: jax.Array) -> jax.Array:
        """[n h w c] -> [n h/p w/p p*p*c]."""
        n, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        if not rows * columns:
            raise InputError(
                f'an input of {height}x{width} pixels is smaller than a token of {self.patch}x'
                f'{self.patch}: lower --config.encoder.patch, or resize patches to more'
            )
        x = x[:, : rows * self.patch, : columns * self.patch]
        x = x.reshape(n, rows, self.patch, columns, self.patch, channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, -1)

    def _positions(self, grid: tuple[int, int]) -> jax.Array:
        """Of every place of a grid: [h' w' d]."""
        if self.has_variable('params', 'positions'):
            shape = self.get_variable('params', 'positions').shape
        else:
            own = (self.image_size // self.patch,) * 2 if self.image_size else grid
            shape = (*own, self.width)
        positions = self.param('positions', _init, shape, jnp.float32)
        if shape[:2] != grid:
            positions = jax.image.resize(positions, (*grid, self.width), 'cubic', antialias=True)
        return positions.astype(self.dtype)


def vit(
    *,
    width: int,
    depth: int,
    heads: int,
    patch: int,
    class_token: bool = False,
    pool: str = 'mean',
    image_size: int = 0,
    remat: str = 'none',
    dtype: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ViT:
    """A ViT as its group in a configuration describes it; arguments as for `ViT`.

    Raises:
      InputError: an unknown pool or remat, or settings that do not go together.
    """
    check_known('encoder.pool', pool, POOLS)
    check_known('encoder.remat', remat, REMAT)
    if width % heads:
        raise InputError(f'encoder.width={width} cannot be shared by encoder.heads={heads}')
    if pool == 'class' and not class_token:
        raise InputError("encoder.pool='class' needs encoder.class_token=True")
    if image_size and image_size < patch:
        raise InputError(f'encoder.image_size={image_size} is less than encoder.patch={patch}')
    return ViT(
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        class_token=class_token,
        pool=pool,
        image_size=image_size,
        dtype=dtype,
        mean=mean,
        std=std,
        remat=remat,
    )


class _Block(nn.Module):
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n t d] -> [n t d]."""
        width = x.shape[-1]
        y = nn.MultiHeadDotProductAttention(
            num_heads=self.heads,
            dtype=self.dtype,
            kernel_init=_init,
            force_fp32_for_softmax=True,
            name='attention',
        )(_layer_norm(self.dtype, 'norm1')(x))
        x = x + y
        y = _layer_norm(self.dtype, 'norm2')(x)
        y = nn.Dense(4 * width, dtype=self.dtype, kernel_init=_init, name='dense1')(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, kernel_init=_init, name='dense2')(y)


def _layer_norm(dtype: Any, name: str) -> nn.Module:
    """Computed in float32 whatever `dtype` is, which is of the output."""
    return nn.LayerNorm(EPSILON, dtype=dtype, use_fast_variance=False, name=name)


def _finer(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
