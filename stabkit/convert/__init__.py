"""Logs that other tools wrote in, run folders out; and a run out again as TensorBoard events."""
