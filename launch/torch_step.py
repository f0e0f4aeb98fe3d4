"""Times EMP-SSL's training step in PyTorch: what this project's is set beside.

    python launch/torch_step.py --arch=resnet18 --stem=cifar --size=32 --images=100 --patches=20 \
        --width=64 --dtype=bfloat16 --compile

Needs PyTorch alone. Forward, loss, backward and SGD with Nesterov momentum on random pixels, which
lie on the device; no augmentation. On a GPU in channels_last; bfloat16 by autocast. The coding
rate is of the smaller of its two matrices, by a Cholesky factor; --no-gram has it as published, by
logdet of the [k k] one.

Prints one JSON object: 'seconds' a step, the median, and its 'quartiles', with two steps under way,
as `benchmark train` has them; 'images_per_s' and 'patches_per_s'; 'compile_seconds', of the first
step; 'peak_gib' of a GPU's memory; 'matmul_operations_per_s' of a large product of the same dtype.
"""

import argparse
import collections
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
WARM = 5  # steps before those that count


class Basic(nn.Module):
    """The block of ResNet-18."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            *convolution(channels, width, 3, stride),
            nn.ReLU(inplace=True),
            *convolution(width, width, 3, 1),
        )
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """The block of ResNet-50, with the stride in the 3x3 convolution."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            *convolution(channels, width, 1, 1),
            nn.ReLU(inplace=True),
            *convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *convolution(width, 4 * width, 1, 1),
        )
        self.shortcut = shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


ARCHS = {'resnet18': (Basic, (2, 2, 2, 2)), 'resnet50': (Bottleneck, (3, 4, 6, 3))}


def convolution(channels: int, width: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    """A convolution and its BatchNorm."""
    return (
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(width),
    )


def shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """What goes past a block, in the shape of the block's output."""
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(*convolution(channels, width, 1, stride))


def make_network(arch: str, stem: str, width: int, projector: list[int]) -> nn.Module:
    """A ResNet and its projector: [n 3 h w] -> [n k]."""
    block, counts = ARCHS[arch]
    if stem == 'cifar':
        layers = [*convolution(3, width, 3, 1), nn.ReLU(inplace=True)]
    else:
        layers = [*convolution(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, count in enumerate(counts):
        for place in range(count):
            stride = 2 if stage and not place else 1
            layers.append(block(channels, width * 2**stage, stride))
            channels = width * 2**stage * block.expansion
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    *hidden, last = projector
    for out in hidden:
        layers += [nn.Linear(channels, out), nn.BatchNorm1d(out), nn.ReLU(inplace=True)]
        channels = out
    return nn.Sequential(*layers, nn.Linear(channels, last))


def tcr(z: Tensor, patches: int, *, gram: bool, eps: float = 0.2) -> Tensor:
    """EMP-SSL's loss of unit vectors, [b*p k], patch by patch."""
    z = z.view(patches, -1, z.shape[-1])  # [p b k]
    _, b, k = z.shape
    similarity = F.cosine_similarity(z, z.mean(0, keepdim=True), dim=-1).mean()
    products = z @ z.mT if gram and b < k else z.mT @ z  # the same determinant
    matrices = torch.eye(products.shape[-1], device=z.device) + k / (b * eps) * products
    if gram:
        factors = torch.linalg.cholesky_ex(matrices).L
        return -200 * similarity - factors.diagonal(dim1=-2, dim2=-1).log().sum(-1).mean()
    return -200 * similarity - torch.logdet(matrices).mean() / 2


def clocked(step: Callable[[], None], steps: int, *, on_gpu: bool) -> list[float]:
    """Seconds between the ends of consecutive steps, with two under way on a GPU."""
    under_way, ends = collections.deque(), []
    for _ in range(WARM + steps + 1):
        step()
        if on_gpu:
            event = torch.cuda.Event()
            event.record()
            under_way.append(event)
            if len(under_way) > 1:
                under_way.popleft().synchronize()
        ends.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(ends)][WARM:]


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product."""
    side = 8192 if device == 'cuda' else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = clocked(lambda: a @ b, 10, on_gpu=device == 'cuda')
    return 2 * side**3 / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arch', choices=ARCHS, default='resnet18')
    parser.add_argument('--stem', choices=('cifar', 'imagenet'), default='cifar')
    parser.add_argument('--size', type=int, default=32, help='side of the patches in pixels')
    parser.add_argument('--images', type=int, default=100)
    parser.add_argument('--patches', type=int, default=20, help='of each image')
    parser.add_argument('--width', type=int, default=64, help='channels of the first stage')
    parser.add_argument('--projector', default='4096,4096,1024', help='widths of its layers')
    parser.add_argument('--dtype', choices=DTYPES, default='float32')
    parser.add_argument('--compile', action='store_true', help='by torch.compile')
    parser.add_argument('--gram', action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument('--steps', type=int, default=30, help='that are measured')
    args = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    device, dtype = 'cuda' if on_gpu else 'cpu', DTYPES[args.dtype]
    # TF32, as JAX has it for float32 on a GPU, and the fastest convolutions for these sizes.
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if on_gpu else torch.contiguous_format
    widths = [int(width) for width in args.projector.split(',')]
    network = make_network(args.arch, args.stem, args.width, widths)
    network = network.to(device, memory_format=layout)
    x = torch.randn(args.images * args.patches, 3, args.size, args.size, device=device)
    x = x.to(memory_format=layout)
    forward = torch.compile(network) if args.compile else network
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=on_gpu
    )

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            z = forward(x)
        tcr(F.normalize(z.float()), args.patches, gram=args.gram).backward()
        optimizer.step()

    start = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    compile_seconds = time.perf_counter() - start
    first, seconds, third = statistics.quantiles(
        clocked(step, args.steps, on_gpu=on_gpu), method='inclusive'
    )
    found = {
        **vars(args),
        'torch': torch.__version__,
        'device': torch.cuda.get_device_name() if on_gpu else 'cpu',
        'seconds': seconds,
        'quartiles': [first, third],
        'images_per_s': args.images / seconds,
        'patches_per_s': len(x) / seconds,
        'compile_seconds': compile_seconds,
        'matmul_operations_per_s': matrix_rate(device, dtype),
    }
    if on_gpu:
        found['peak_gib'] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(found))


if __name__ == '__main__':
    main()
