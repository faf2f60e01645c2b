"""Feature pyramids and channel mappers. Pure torch."""
