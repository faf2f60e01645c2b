"""Safe reading, strict loading, durable writing of checkpoints; a paper's key table lives in the paper's own file."""

from vistrain.checkpoints.fetching import Located, locate, with_digest
from vistrain.checkpoints.finding import find_state_dict, strip_prefixes
from vistrain.checkpoints.keymap import KeyMap
from vistrain.checkpoints.loading import (
    Adapted,
    LeftOut,
    LoadReport,
    disagreements,
    load_weights,
    merged,
    of_another_kind,
    read_state_dict,
    renamed,
    state_dict_in,
    under,
    with_channels,
)
from vistrain.checkpoints.reading import load_file, refuse_unreadable
from vistrain.checkpoints.saving import save_durably

__all__ = [
    "Adapted",
    "KeyMap",
    "LeftOut",
    "LoadReport",
    "Located",
    "disagreements",
    "find_state_dict",
    "load_file",
    "load_weights",
    "locate",
    "merged",
    "of_another_kind",
    "read_state_dict",
    "refuse_unreadable",
    "renamed",
    "save_durably",
    "state_dict_in",
    "strip_prefixes",
    "under",
    "with_channels",
    "with_digest",
]
