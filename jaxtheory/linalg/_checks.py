"""Checks of arguments that the Lanczos routines share."""

import lineax as lx


def check_reorthogonalise(word: str) -> None:
    """Raise unless `word` is one of the two.

    Args:
        word: What was given as `reorthogonalise`.

    Raises:
        ValueError: It is another word.
    """
    if word not in ("full", "none"):
        raise ValueError(
            f"`reorthogonalise` must be 'full' or 'none', but was {word!r}."
        )


def check_symmetric(operator: lx.AbstractLinearOperator) -> None:
    """Raise unless lineax knows that a square operator is symmetric.

    Args:
        operator: The operator.

    Raises:
        ValueError: Its tags do not say so.
    """
    if not lx.is_symmetric(operator):
        raise ValueError(
            "`operator` must be symmetric, but is a "
            f"{type(operator).__name__} that lineax does not know to be. If it is, say "
            "so: `lineax.TaggedLinearOperator(operator, lineax.symmetric_tag)`, or "
            "`tags=lineax.symmetric_tag` where it is made."
        )
