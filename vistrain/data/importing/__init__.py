"""Sets that other tools export, as files in COCO's format: a reader for each layout, one gate for what they find."""
