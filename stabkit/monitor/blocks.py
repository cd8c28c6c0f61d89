"""Every tensor of a model in one flat buffer, so that a signal is one pass over one tensor.

The buffer is [blocks, WIDTH]: each tensor fills whole rows, the last padded with zeros. A pass
over it costs the same however many tensors there are, and its rows are summed by layer in a fixed
order, so that a value is the same to the last bit when a step is made again.
"""
