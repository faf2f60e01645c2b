"""Pictures that people look at: boxes on images, images side by side, curves and bars. All draw without a display."""

from vistrain.pictures.boxes import class_colours, draw_boxes, stable_colour
from vistrain.pictures.charts import bars, confusion, curves, histogram
from vistrain.pictures.grids import fitted, grid

__all__ = [
    "bars",
    "class_colours",
    "confusion",
    "curves",
    "draw_boxes",
    "fitted",
    "grid",
    "histogram",
    "stable_colour",
]
