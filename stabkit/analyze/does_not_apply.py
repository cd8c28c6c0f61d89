"""The error of what does not apply to the runs at hand, so that no other error is taken for it."""


class DoesNotApplyError(ValueError):
    """A figure or a test needs what these runs do not have; the message says what."""
