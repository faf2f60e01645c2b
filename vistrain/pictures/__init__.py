"""Pictures that people look at: boxes and classes on images, images side by side, curves and bars.

All draw without a display.
"""

from vistrain.pictures.boxes import draw_boxes
from vistrain.pictures.charts import bars, box_plot, confusion, curves, curves_together, histogram
from vistrain.pictures.colours import class_colours, shade, stable_colour
from vistrain.pictures.grids import fitted, grid, save_picture, viewable
from vistrain.pictures.lines import draw_lanes
from vistrain.pictures.overlays import coloured, draw_masks, legend, overlaid

__all__ = [
    "bars",
    "box_plot",
    "class_colours",
    "coloured",
    "confusion",
    "curves",
    "curves_together",
    "draw_boxes",
    "draw_lanes",
    "draw_masks",
    "fitted",
    "grid",
    "histogram",
    "legend",
    "overlaid",
    "save_picture",
    "shade",
    "stable_colour",
    "viewable",
]
