"""Images with class maps: sets, augmentation, and looking at them."""
