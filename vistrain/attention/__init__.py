"""One file per attention operator or token mixer. Pure torch."""
