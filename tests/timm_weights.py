"""timm's ViTs as dictionaries of arrays, and what timm's models of these weights give.

Where timm is installed, `python tests/timm_weights.py` prints OUTPUTS again, of the second image.
They are of timm 1.0.31 with PyTorch 2.14.
"""

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH, HEADS, DEPTH, PATCH, SIDE = 8, 2, 2, 4, 16
# (class token, pool) -> what timm calls it.
TIMM = {
    (True, 'class'): {},
    (False, 'mean'): {'class_token': False, 'global_pool': 'avg', 'fc_norm': False},
    (True, 'mean_norm'): {'global_pool': 'avg'},
}
# Height and width of the images: as trained, larger, smaller, and shrunk along one side alone.
SIZES = ((16, 16), (28, 20), (8, 8), (24, 12))
OUTPUTS = {
    ((True, 'class'), (16, 16)): [0.608497, -0.878121, -1.339839, 1.076312, -0.989677],
    ((True, 'class'), (28, 20)): [0.369468, -0.579856, -1.284482, 1.181939, -1.031714],
    ((True, 'class'), (8, 8)): [0.231525, -0.557749, -1.198199, 1.105101, -0.992421],
    ((True, 'class'), (24, 12)): [0.325656, -0.497417, -1.266794, 1.235713, -1.077367],
    ((False, 'mean'), (16, 16)): [-0.487807, 0.13439, 0.622635, -0.739127, -0.536242],
    ((False, 'mean'), (28, 20)): [-0.386026, -0.050547, 0.402403, -0.493224, -0.418279],
    ((False, 'mean'), (8, 8)): [-0.944171, 0.400938, 0.303808, -0.906961, -0.11499],
    ((False, 'mean'), (24, 12)): [-0.310458, 0.218918, -0.252974, -0.459165, -0.209487],
    ((True, 'mean_norm'), (16, 16)): [1.302608, -0.604804, 0.501708, -0.373237, -1.337904],
    ((True, 'mean_norm'), (28, 20)): [0.321542, -0.742184, 0.432319, 0.434052, -1.593141],
    ((True, 'mean_norm'), (8, 8)): [-0.203453, -1.481556, -1.34288, -0.679115, -0.076631],
    ((True, 'mean_norm'), (24, 12)): [1.11136, -0.976157, -0.136424, 0.701742, -1.565772],
}


def weights(*, width=WIDTH, depth=DEPTH, side=SIDE, patch=PATCH, class_token=True, norm='norm'):
    """A state dict without classifier: random weights, outputs of order one."""
    rng = np.random.default_rng(0)
    arrays = {}

    def draw(name, *shape, scale=0.5, offset=0.0):
        arrays[name] = (offset + scale * rng.normal(size=shape)).astype(np.float32)

    def linear(name, inputs, outputs):
        draw(f'{name}.weight', outputs, inputs, scale=inputs**-0.5)
        draw(f'{name}.bias', outputs)

    def layer_norm(name):
        draw(f'{name}.weight', width, offset=1.0, scale=0.2)
        draw(f'{name}.bias', width)

    draw('patch_embed.proj.weight', width, 3, patch, patch, scale=1 / patch)
    draw('patch_embed.proj.bias', width)
    if class_token:
        draw('cls_token', 1, 1, width)
    draw('pos_embed', 1, (side // patch) ** 2 + class_token, width, scale=1.0)
    for i in range(depth):
        block = f'blocks.{i}'
        layer_norm(f'{block}.norm1')
        linear(f'{block}.attn.qkv', width, 3 * width)
        linear(f'{block}.attn.proj', width, width)
        layer_norm(f'{block}.norm2')
        linear(f'{block}.mlp.fc1', width, 4 * width)
        linear(f'{block}.mlp.fc2', 4 * width, width)
    layer_norm(norm)
    return arrays


def weights_of(class_token, pool):
    return weights(class_token=class_token, norm='fc_norm' if pool == 'mean_norm' else 'norm')


def images(size):
    """Pixels in [0, 1]: [2 h w 3]."""
    return np.random.default_rng(1).random((2, *size, 3)).astype(np.float32)


def main():
    import timm
    import torch

    for kind, options in TIMM.items():
        shape = {'img_size': SIDE, 'patch_size': PATCH, 'dynamic_img_size': True, 'num_classes': 0}
        size = {'embed_dim': WIDTH, 'depth': DEPTH, 'num_heads': HEADS}
        model = timm.models.VisionTransformer(**shape, **size, **options)
        arrays = weights_of(*kind)
        model.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()})
        for image_size in SIZES:
            x = ((images(image_size) - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
            with torch.no_grad():
                h = model.eval()(torch.from_numpy(x))
            numbers = [round(value, 6) for value in h[1, :5].tolist()]
            print(f'    {(kind, image_size)}: {numbers},')


if __name__ == '__main__':
    main()
