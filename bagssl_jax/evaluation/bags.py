"""Bags: the representation of an image as the mean of its patches' embeddings."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from bagssl_jax.data.pipeline import Bags
from bagssl_jax.parallel import batch_sharded

Variables = Mapping[str, Any]
Embed = Callable[[Variables, jax.Array], dict[str, jax.Array]]


def make_embed(encoder: nn.Module, projector: nn.Module | None, spaces: tuple[str, ...]) -> Embed:
    """The frozen forward pass, jitted.

    Returns:
      (variables {'encoder', 'projector'}, uint8 patches [n h w c]) -> those of {'h': float32
      [n d], 'z': float32 [n k]} that `spaces` names; each patch on its own, with the running
      statistics.
    """

    @jax.jit
    def embed(variables: Variables, patches: jax.Array) -> dict[str, jax.Array]:
        x = patches.astype(jnp.float32) / 255
        h, _ = encoder.apply(variables['encoder'], x, train=False)
        outputs = {'h': h}
        if projector is not None:
            outputs['z'], _ = projector.apply(variables['projector'], h, train=False)
        return {space: outputs[space] for space in spaces}

    return embed


def bag_means(
    embed: Embed,
    encoders: Mapping[str, Variables],
    batches: Iterable[Bags],
    *,
    spaces: tuple[str, ...],
    chunk: int,
    mesh: Mesh,
) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray]:
    """Mean embedding of every bag, by each of several encoders in one pass over the data.

    Args:
      embed: of `make_embed`.
      encoders: name -> variables for it.
      batches: of the pipeline, with b * p at most `chunk`.
      spaces: those that `embed` gives.
      chunk: patches a forward pass; a smaller batch is padded, so that one program serves all.
      mesh: the data mesh, whose size divides `chunk`.

    Returns:
      (encoder, space) -> float32 [n d], and the labels [n], both in the order of `batches`.
    """
    parts = {(name, space): [] for name in encoders for space in spaces}
    labels = []
    for batch in batches:
        bags = batch.patches.shape[:2]
        count = bags[0] * bags[1]
        on_devices = jax.device_put(padded(batch.patches, chunk), batch_sharded(mesh))
        outputs = {name: embed(variables, on_devices) for name, variables in encoders.items()}
        for (name, space), means in parts.items():
            vectors = np.asarray(outputs[name][space])[:count]
            means.append(vectors.reshape(*bags, -1).mean(axis=1))  # [n d] -> [b d]
        labels.append(batch.labels)
    return {key: np.concatenate(means) for key, means in parts.items()}, np.concatenate(labels)


def padded(patches: np.ndarray, chunk: int) -> np.ndarray:
    """uint8 [b p h w c] -> [chunk h w c], zeros at the end: one program serves every batch."""
    flat = patches.reshape(-1, *patches.shape[2:])
    result = np.zeros((chunk, *flat.shape[1:]), np.uint8)
    result[: len(flat)] = flat
    return result
