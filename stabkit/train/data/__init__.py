"""Image data: load and cache them, cut them into batches, make views of them."""
