"""One file per module of convolutional networks, all called `forward(x: [B, C, H, W])`. Pure torch.

Every file here is imported, and every module in it is the room's: a new one is one file and no edit elsewhere.
"""

import importlib
import pkgutil

from vistrain.modules.base import ConvModule as ConvModule  # not in __all__: no config names it

__all__ = []

for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _name, _value in list(vars(_module).items()):
        if not isinstance(_value, type) or not issubclass(_value, ConvModule) or not _value.formula:
            continue  # bases state no formula
        if _value.__module__ == _module.__name__:
            globals()[_name] = _value
            __all__ += [_name]
