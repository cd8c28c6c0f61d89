"""Convert logs of other tools to run folders, and export a run as TensorBoard events."""
