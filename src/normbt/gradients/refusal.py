"""Why the fast method cannot measure a model, kept apart from the advice to take the slow one."""

from normbt.errors import ModelError


class GhostRefusal(ModelError):
    """The ghost method is not right for the model.

    Args:
        reason: why, one sentence.
        advice: what to do about it; a caller that has taken the slow method already leaves it out.

    Example:
        >>> str(GhostRefusal("a layer is not known."))
        "a layer is not known. Use method='exact'."
    """

    def __init__(self, reason: str, advice: str = "Use method='exact'.") -> None:
        super().__init__(f"{reason} {advice}")
        self.reason = reason
