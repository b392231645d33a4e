"""What says that an attack cannot be made on this model or data."""


class NotApplicable(ValueError):
    """The reason why an attack is left out, as the end of a sentence: "the forget set has documents"."""
