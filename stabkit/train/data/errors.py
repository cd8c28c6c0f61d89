"""The errors of image data."""


class DataError(ValueError):
    """Image data are missing, damaged or of a kind that cannot be used.

    The message names the file or the setting, the value found, and what would be right. `load_data`
    raises it before a training starts. A set that is decoded on every load raises it for a damaged
    image at the step that first asks for that image.
    """


class DecoderError(RuntimeError):
    """The process that decodes images has died or has no memory; the images may be sound."""
