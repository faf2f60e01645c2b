"""The commands, a file each: what a command takes, and what it calls. Importing them imports no torch."""
