"""`stabkit.Monitor` in training loops that others wrote. Each module needs its framework."""
