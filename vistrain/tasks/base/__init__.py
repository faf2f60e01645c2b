"""What every task is, and what runs around it."""
