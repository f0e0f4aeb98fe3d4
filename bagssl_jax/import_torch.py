"""Brings an encoder from PyTorch into a workdir.

    python -m bagssl_jax.import_torch --checkpoint=FILE --arch=resnet50 --workdir=DIR

FILE holds a state dict with torchvision's names, or of a ViT with timm's, bare or as VICReg,
MoCo, SimSiam, SwAV, DINO, Barlow Twins, solo-learn and EMP-SSL nest it; then, for one, probe it:

    python -m bagssl_jax.probe --workdir=DIR --config.data.name=NAME --config.data.dir=DATA

--arch is resnet18, 34, 50, 101, 152, 200, vit_ti, vit_s or vit_b. Width and stem are read off the
weights (VICReg's resnet50x2 is a resnet50 of width 128), a ViT's tokens and positions too; its h is
the class token where it has one, else the mean of the tokens. So is a projector of linear layers
with BatchNorm and ReLU between them, in the layouts of VICReg, Barlow Twins, solo-learn and
EMP-SSL. These cannot be:

  --mean, --std   of the pixels, by channel: ImageNet's if not given, which all of them use but
                  EMP-SSL and most of timm's ViTs (0.5,0.5,0.5 for both) and, on CIFAR, solo-learn
                  (CIFAR-10: 0.4914,0.4822,0.4465 and 0.2470,0.2435,0.2616; CIFAR-100:
                  0.5071,0.4865,0.4409 and 0.2673,0.2564,0.2762)
  --stem          cifar_pad2 for solo-learn's on CIFAR, whose 3x3 convolution pads by 2
  --prefix        of the names, where several encoders are there: DINO's teacher is taken, MoCo's
                  encoder_q; nested dictionaries are joined by dots: student.module.backbone

Bottlenecks are torchvision's (version 1.5). A FILE that is not .safetensors needs PyTorch:
pip install '.[torch]'. Of what `bagssl_jax.export` wrote, --arch, --stem, --mean and --std need not
be given again.
"""

from collections.abc import Callable

from bagssl_jax import cli

OPTIONS = {
    'checkpoint': '',
    'workdir': '',
    'arch': '',
    'prefix': '',
    'stem': '',
    'mean': (),
    'std': (),
}


def load() -> Callable[..., None]:
    from bagssl_jax.interop import import_run

    return import_run


if __name__ == '__main__':
    cli.run_command(load, __doc__, outlook='the same command starts anew', options=OPTIONS)
