"""Assignment of predictions to objects. Pure torch."""
