"""Dense correspondence between two images: disparity and optical flow."""
