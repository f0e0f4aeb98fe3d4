"""Trains small networks for 20 steps by the code of three recipes' authors, in float64.

    git clone https://github.com/tsb0601/EMP-SSL                  (8fc3758 was used)
    git clone https://github.com/facebookresearch/vicreg          (4e12602)
    git clone https://github.com/facebookresearch/barlowtwins     (8e8d284)
    PYTHONPATH=.:tests python tests/data/author_steps.py EMP-SSL vicreg barlowtwins

With PyTorch (2.13.0 was used), but not torchvision: EMP-SSL and Barlow Twins build on torchvision's
ResNet, whose place VICReg's takes, which has the same layers. Writes author_steps.npz beside this
file: of each, the losses, and all arrays after the last step. Losses, optimisers, projectors and
learning rates are the authors'; the networks are narrower, and start from arrays of the test's.
"""

import ast
import pathlib
import sys
import types

import numpy as np
import torch
from test_author_steps import CASES, STEPS, exported, start


def main(emp_ssl, vicreg, barlow_twins):
    torch.set_default_dtype(torch.float64)
    sys.modules['torchvision'] = torchvision = types.ModuleType('torchvision')
    for name in ('models', 'datasets', 'transforms'):
        sys.modules[f'torchvision.{name}'] = types.ModuleType(name)
        setattr(torchvision, name, sys.modules[f'torchvision.{name}'])
    sys.modules['augmentations'] = types.ModuleType('augmentations')
    sys.path.insert(0, vicreg)
    import resnet

    class Narrow(resnet.ResNet):
        """Whose bottlenecks are as narrow as its stem."""

        def _make_layer(self, *args, **kwargs):
            self.base_width = 64
            return super()._make_layer(*args, **kwargs)

    def narrow(block, width):
        return Narrow(block, [1, 1, 1, 1], width_per_group=width, zero_init_residual=True)

    found = {}
    torch.distributed.init_process_group(
        'gloo', init_method='tcp://localhost:29511', rank=0, world_size=1
    )
    for name, make, directory in (
        ('emp_ssl', of_emp_ssl, emp_ssl),
        ('vicreg', of_vicreg, vicreg),
        ('barlow', of_barlow_twins, barlow_twins),
    ):
        case = CASES[name]
        loss, net, optimizer, schedule = make(directory, resnet, narrow, case)
        load(net, exported(start(case)))
        losses = []
        for step, patches in enumerate(case.batches()):
            before, after = schedule
            before(step)
            optimizer.zero_grad()
            x = torch.from_numpy(patches.transpose(1, 0, 4, 2, 3))  # [b p h w c] -> [p b c h w]
            value = loss(net, (x - 0.5) / 0.5)
            value.backward()
            optimizer.step()
            after()
            losses.append(value.item())
        assert len(losses) == STEPS
        found[f'{name}/losses'] = np.array(losses)
        for key, array in arrays(net).items():
            found[f'{name}/{key}'] = array.detach().numpy()
    np.savez_compressed(pathlib.Path(__file__).with_suffix('.npz'), **found)


def of_emp_ssl(directory, resnet, narrow, case):
    """As main.py has it, which is a script: its functions are taken out of its text."""
    torchvision = sys.modules['torchvision.models']
    torchvision.resnet18 = torchvision.resnet34 = torchvision.resnet50 = None
    sys.path.insert(0, directory)
    import lars
    import loss
    from model import model

    def getmodel(arch):
        backbone = narrow(resnet.BasicBlock, case.width)
        backbone.padding = torch.nn.Identity()  # VICReg's own, of its stem
        backbone.conv1 = torch.nn.Conv2d(3, case.width, 3, 1, 1, bias=False)
        backbone.maxpool = torch.nn.Identity()
        return backbone, 8 * case.width

    model.getmodel = getmodel
    hidden, _, out = case.projector
    net = model.encoder(z_dim=out, hidden_dim=hidden)
    wanted = ('chunk_avg', 'Similarity_Loss', 'cal_TCR')
    source = ast.parse((pathlib.Path(directory) / 'main.py').read_text())
    source.body = [node for node in source.body if getattr(node, 'name', '') in wanted]
    names = {'torch': torch, 'nn': torch.nn, 'F': torch.nn.functional}
    exec(compile(source, 'main.py', 'exec'), names)
    similarity, coding_rate = names['Similarity_Loss'](), loss.TotalCodingRate(eps=0.2)

    def loss_of(net, x):
        patches = len(x)
        z = net(torch.cat(list(x)))
        of_patches = z.chunk(patches, dim=0)
        similar, _ = similarity(of_patches, names['chunk_avg'](z, patches))
        return 200 * similar + names['cal_TCR'](z, coding_rate, patches)

    sgd = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-4, nesterov=True)
    optimizer = lars.LARSWrapper(sgd, eta=0.005, clip=True, exclude_bias_n_norm=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=STEPS, eta_min=0)
    return loss_of, net, optimizer, (lambda step: None, schedule.step)


def of_vicreg(directory, resnet, narrow, case):
    del directory
    import main_vicreg

    resnet.narrow = lambda zero_init_residual: (
        narrow(resnet.Bottleneck, case.width),
        32 * case.width,
    )
    args = types.SimpleNamespace(
        arch='narrow', mlp='-'.join(map(str, case.projector)), batch_size=case.images,
        sim_coeff=25.0, std_coeff=25.0, cov_coeff=1.0, epochs=STEPS, base_lr=0.2,
    )  # fmt: skip
    net = main_vicreg.VICReg(args)
    optimizer = main_vicreg.LARS(
        net.parameters(),
        lr=0,
        weight_decay=1e-6,
        weight_decay_filter=main_vicreg.exclude_bias_and_norm,
        lars_adaptation_filter=main_vicreg.exclude_bias_and_norm,
    )

    def before(step):
        main_vicreg.adjust_learning_rate(args, optimizer, [None], step)

    return lambda net, x: net(*x), net, optimizer, (before, lambda: None)


def of_barlow_twins(directory, resnet, narrow, case):
    """As main.py has it, but for the width of its encoder."""
    torchvision = sys.modules['torchvision']
    torchvision.models.resnet50 = lambda zero_init_residual: narrow(resnet.Bottleneck, case.width)
    text = (pathlib.Path(directory) / 'main.py').read_text()
    text = text.replace('sizes = [2048]', f'sizes = [{32 * case.width}]')
    names = {'__name__': 'barlow_twins'}
    exec(compile(text, 'main.py', 'exec'), names)
    args = types.SimpleNamespace(
        projector='-'.join(map(str, case.projector)), batch_size=case.images, lambd=0.0051,
        epochs=STEPS, learning_rate_weights=0.2, learning_rate_biases=0.0048,
    )  # fmt: skip
    net = names['BarlowTwins'](args)
    groups = [
        {'params': [p for p in net.parameters() if (p.ndim == 1) == biases]}
        for biases in (False, True)
    ]
    optimizer = names['LARS'](
        groups, lr=0, weight_decay=1e-6, weight_decay_filter=True, lars_adaptation_filter=True
    )

    def before(step):
        names['adjust_learning_rate'](args, optimizer, [None], step)

    return lambda net, x: net(*x), net, optimizer, (before, lambda: None)


def load(net, wanted):
    with torch.no_grad():
        for key, array in arrays(net).items():
            if key in wanted:
                array.copy_(torch.from_numpy(np.array(wanted[key])))
            else:  # biases before a BatchNorm, which change nothing
                assert key.endswith('.bias'), key
                array.zero_()


def arrays(net):
    """As `exported` names them: those of the backbone, and of the projector's linear layers."""
    found = {}
    heads = [m for m in net.children() if isinstance(m, torch.nn.Sequential)]
    for key, array in net.backbone.state_dict(keep_vars=True).items():
        found[f'backbone.{key}'] = array
    layers = [layer for head in heads for layer in head]
    for kind, word in ((torch.nn.Linear, 'linear'), (torch.nn.BatchNorm1d, 'norm')):
        for i, layer in enumerate((x for x in layers if isinstance(x, kind)), start=1):
            for key, array in layer.state_dict(keep_vars=True).items():
                found[f'{word}{i}.{key}'] = array
    return {key: x for key, x in found.items() if not key.endswith('num_batches_tracked')}


if __name__ == '__main__':
    main(*sys.argv[1:])
