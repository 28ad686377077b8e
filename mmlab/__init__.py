"""A page-exact model of KSM, transparent huge pages and the zero-page remap.

The public names are those of `__init__.pyi`. Each loads its module when it is first used, so that `import mmlab` is
quick: compiled code, pandas and matplotlib load when they are needed.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
