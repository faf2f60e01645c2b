"""One file per attention operator or token mixer, all called `forward(x: [B, N, C], size: (H, W))`. Pure torch.

Every file here is imported, and every operator in it is the room's: a new one is one file and no edit elsewhere.
"""

from vistrain.attention.base import AttentionOperator as AttentionOperator  # not in __all__: no config names it
from vistrain.attention.base import attend, auxiliary_losses, is_operator, operators_of, paths_of
from vistrain.by_name import gathered

_operators = gathered(__name__, __path__, is_operator)
globals().update(_operators)
__all__ = ["attend", "auxiliary_losses", "operators_of", "paths_of", *_operators]
