"""The shipped quickstart, small enough to train in a second or two: for tests and the harnesses."""

import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
TINY = (
    f'--config={REPOSITORY}/configs/quickstart.py',
    '--config.data.train_split=train[:96]',
    '--config.data.test_split=test[:40]',
    '--config.data.batch_size=16',
    '--config.patches.count=2',
    '--config.patches.size=8',
    '--config.patches.resize=8',
    '--config.encoder.width=4',
    '--config.projector.widths=(16,8)',
    '--config.probe.patches=(1,4)',
    '--config.probe.batch_size=64',
    '--config.probe.encoders=trained',
    '--config.analysis.after_training=',
)


def xla_flags(devices):
    """XLA_FLAGS of so many CPU devices, whose programs are compiled quickly.

    Compiling is most of what tests take: networks of four channels want neither LLVM's best nor
    fusions compiled by MLIR, and workers leave no idle core to compile parts of a program on. CI's
    quickstart is compiled as users have it.
    """
    return (
        f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 '
        '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
    )
