"""One file per module of convolutional networks, all called `forward(x: [B, C, H, W])`. Pure torch.

Every file here is imported, and every module in it is the room's: a new one is one file and no edit elsewhere.
"""

from vistrain.by_name import gathered
from vistrain.modules.base import ConvModule as ConvModule  # not in __all__: no config names it
from vistrain.modules.base import is_module

_modules = gathered(__name__, __path__, is_module)
globals().update(_modules)
__all__ = [*_modules]
