"""Every key, with a comment, is in bagssl_jax/defaults.py. The other configurations start there.

    from configs import default  # or, outside of this repository: from bagssl_jax import defaults

    def get_config():
        config = default.get_config()
        config.patches.count = 4
        return config

A key that does not exist is refused.
"""

from bagssl_jax.defaults import get_config

__all__ = ('get_config',)
