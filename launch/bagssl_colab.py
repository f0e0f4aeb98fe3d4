# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     provenance: []
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BagSSL, in a notebook
#
# An encoder learns from small patches of images alone, without labels; an image is then the mean of
# its patches' embeddings
# ([Chen, Bardes, Li and LeCun, 2022](https://arxiv.org/abs/2206.08954)). Here one is trained in a
# few minutes, probed, and looked at; then a published ResNet-50 is looked at in the same way, and
# last, with one switch, an encoder is trained on CIFAR-10.
#
# On [Colab](https://colab.research.google.com), choose a GPU, a TPU or a CPU under *Runtime, Change
# runtime type*, and run the cells from the top. On a machine of your own it works as well, with the
# package installed or without.
#
# With the environment variable `BAGSSL_SHORT=1` everything is as short as a test needs: nothing is
# installed or downloaded, and a narrow encoder takes a few steps.

# %%
REPOSITORY = ''  # where the code is cloned from, where it is not here: https://github.com/...
IMAGES = ''  # a folder of photographs for the published encoder; '': eight that scikit-image has
CIFAR10 = False  # True: the last cell trains on CIFAR-10, for minutes on an accelerator

# %% [markdown]
# ## Install
#
# JAX finds a GPU or a TPU only with the plugin of its own version, so the extra that fits the
# runtime is installed, and then it is asked what it found. All that follows runs in processes of
# its own, which see what was installed here; this notebook's need not be restarted.

# %%
import base64
import glob
import html
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import urllib.request

from IPython import get_ipython
from IPython.display import HTML, display

SHORT = os.environ.get('BAGSSL_SHORT') == '1'


def run(*command):
    """Runs a command as a line with ! does, and stops the notebook where it fails."""
    get_ipython().system(shlex.join(map(str, command)))
    status = get_ipython().user_ns['_exit_code']
    assert status == 0, f'{command[0]} ended with status {status}: see above'


def program(name, *arguments):
    """Runs one of the programs of the package."""
    run(sys.executable, '-m', f'bagssl_jax.{name}', *arguments)


def find_runtime():
    """'tpu', 'gpu' or 'cpu'."""
    if glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'):
        return 'tpu'
    gpus = shutil.which('nvidia-smi') and subprocess.run(['nvidia-smi', '-L'], capture_output=True)
    return 'gpu' if gpus and gpus.returncode == 0 and gpus.stdout else 'cpu'


runtime = find_runtime()
code = pathlib.Path('bagssl').resolve()
here = importlib.util.find_spec('bagssl_jax')
if here and here.origin and (pathlib.Path(here.origin).parents[1] / 'configs').is_dir():
    code = pathlib.Path(here.origin).parents[1]  # this notebook is run where the code is
if not code.exists():
    assert REPOSITORY, 'give REPOSITORY above: the address of the code, to clone it from'
    run('git', 'clone', '--depth=1', REPOSITORY, code)
if not SHORT and 'bagssl-jax' not in {one.name for one in importlib.metadata.distributions()}:
    extras = ['analysis', *{'gpu': ['cuda'], 'tpu': ['tpu'], 'cpu': []}[runtime]]
    if not importlib.util.find_spec('torch'):
        extras.append('torch')  # which reads the published encoder's file
    run(sys.executable, '-m', 'pip', 'install', '-q', '-e', f'{code}[{",".join(extras)}]')

ask = 'import jax; print(jax.default_backend())'
asked = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True)
backend = asked.stdout.strip()
assert SHORT or backend == runtime, f'a {runtime} is here, but JAX uses {backend}: {asked.stderr}'
print(f'{runtime}, code in {code}')

# %% [markdown]
# ## Train and probe
#
# The quickstart: which of eight photographs is a small tile from? The encoder is trained on patches
# of 16x16 pixels without knowing the answer. Then probes, simple classifiers on what it makes of
# bags of 1 to 64 patches, and of the whole tile, are compared with those on an encoder that was not
# trained.

# %%
quickstart = pathlib.Path('runs/quickstart')
settings = []
if SHORT:
    settings += ['--config.data.train_split=train[:96]', '--config.data.test_split=test[:40]']
    settings += ['--config.data.batch_size=16', '--config.patches.count=2']
    settings += ['--config.encoder.width=4', '--config.projector.widths=(16,8)']
    settings += ['--config.train.epochs=2', '--config.probe.patches=(1,4)']
    settings += ['--config.probe.probes=knn', '--config.probe.views=bag']
    settings += ['--config.analysis.after_training=']
program('main', f'--config={code}/configs/quickstart.py', f'--workdir={quickstart}', *settings)

# %% [markdown]
# A probe can be made of any run at any time. This one takes the projection z beside the embedding
# h: training pulls patches of one image together in z, and it may keep less of what tells them
# apart.

# %%
settings = ['--config.probe.spaces=h,z', '--config.probe.probes=knn']
settings += ['--config.probe.patches=4', '--config.probe.views=bag'] if SHORT else []
program('probe', f'--workdir={quickstart}', *settings)

# %% [markdown]
# ## Look
#
# Looks are pictures of what the encoder has learned, each with a sentence on how to read it. The
# quickstart has ended with four: does the mean of ever more patches come near to the whole image's
# embedding (convergence), what lies beside a patch (neighbours), how far does a patch reach
# (locality), and all of them on a map. Others are asked for by name: here, how accuracy depends on
# the size of the patches.

# %%
what, settings = 'scales', []
if SHORT:
    what = 'convergence'
    settings += ['--config.analysis.convergence.patches=4']
    settings += ['--config.analysis.convergence.max_images=8']
    settings += ['--config.analysis.convergence.scales=(0.2,)']
program('analyze', f'--workdir={quickstart}', f'--what={what}', *settings)


# %%
def show_pictures(workdir):
    """The pictures of all looks that were taken, with their captions."""
    looks = json.loads((workdir / 'analysis.json').read_text())['looks']
    for figure in [figure for look in looks.values() for figure in look['figures']]:
        data = base64.b64encode((workdir / figure['file']).read_bytes()).decode()
        alt, caption = html.escape(figure['alt']), html.escape(figure['caption'])
        image = f'<img src="data:image/png;base64,{data}" alt="{alt}" style="max-width: 700px">'
        display(HTML(f'<figure>{image}<figcaption>{caption}</figcaption></figure>'))


def show_report(workdir):
    """The report, a page of its own, inside this one."""
    page = html.escape((workdir / 'report.html').read_text())
    frame = f'<iframe srcdoc="{page}" width="100%" height="800" title="report"></iframe>'
    display(HTML(f'<div>{frame}</div>'))


show_pictures(quickstart)

# %% [markdown]
# Everything about the run is in one file, `report.html`, which needs no network and opens on a
# phone:

# %%
show_report(quickstart)

# %% [markdown]
# ## A published encoder
#
# Encoders that were trained elsewhere are imported as runs: here torchvision's ResNet-50, trained
# on ImageNet with whole images and labels. It never saw an image as a bag of patches: does the mean
# of its patches' embeddings come near to the whole image's all the same?

# %%
resnet50 = pathlib.Path('runs/resnet50')
WEIGHTS = 'https://download.pytorch.org/models/resnet50-11ad3fa6.pth'  # 98 MB
if SHORT:
    print('left out in the short form: it downloads 98 MB')
else:
    file = pathlib.Path('resnet50.pth')
    if not file.exists():
        urllib.request.urlretrieve(WEIGHTS, 'resnet50.part')
        os.replace('resnet50.part', file)
    program('import_torch', f'--checkpoint={file}', '--arch=resnet50', f'--workdir={resnet50}')
    if not IMAGES:
        IMAGES = 'photographs'
        os.makedirs(IMAGES, exist_ok=True)
        data = pathlib.Path(importlib.util.find_spec('skimage').origin).parent / 'data'
        names = 'astronaut.png chelsea.png coffee.png hubble_deep_field.jpg ihc.png'
        for name in [*names.split(), 'motorcycle_left.png', 'retina.jpg', 'rocket.jpg']:
            shutil.copy(data / name, IMAGES)
    settings = [f'--config.analysis.convergence.patches={16 if runtime == "cpu" else 64}']
    settings += ['--config.probe.batch_size=128']
    what = ['--what=convergence', f'--images={IMAGES}']
    program('analyze', f'--workdir={resnet50}', *what, *settings)
    show_pictures(resnet50)

# %% [markdown]
# ## CIFAR-10
#
# With `CIFAR10 = True` above. The data set is prepared once, which downloads it; on a GPU or TPU
# an encoder is then trained by EMP-SSL's recipe, a ResNet-18 for 30 epochs of 20 patches an image,
# on a CPU a tiny one on 10,000 images. The same cell again goes on where it was interrupted.

# %%
cifar10, data = pathlib.Path('runs/cifar10'), pathlib.Path('tfds')
if CIFAR10:
    if not (data / 'cifar10').exists():
        if not importlib.util.find_spec('tensorflow'):
            run(sys.executable, '-m', 'pip', 'install', '-q', '-e', f'{code}[prepare]')
        program('prepare', 'cifar10', f'--data_dir={data}')
    recipe = f'{code}/configs/cifar10.py:tcr' + (',small' if runtime == 'cpu' else '')
    settings = []
    if SHORT:
        settings += ['--config.data.train_split=train[:64]', '--config.data.test_split=test[:64]']
        settings += ['--config.data.batch_size=16', '--config.optimizer.warmup_epochs=0']
        settings += ['--config.train.steps=2', '--config.probe.patches=4']
    where = [f'--config.data.dir={data}', f'--workdir={cifar10}']
    program('main', f'--config={recipe}', *where, *settings)
    show_report(cifar10)
else:
    print('left out: set CIFAR10 = True above')
