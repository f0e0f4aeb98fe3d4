"""Eight CPU devices, a persistent compilation cache, and strict JAX settings for every test."""

import os
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# Set before JAX is imported; programs that the tests start inherit them.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(REPOSITORY / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
