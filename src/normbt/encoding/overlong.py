"""What happens to sequences that are longer than the model may read."""

from collections.abc import Sequence
from difflib import get_close_matches

from normbt.errors import ConfigError


def require_policy(policy: str, known: Sequence[str]) -> None:
    """Refuse a policy that does not exist, and name the nearest one."""
    if policy not in known:
        near = get_close_matches(policy, known, n=1)
        raise ConfigError(
            f"overlong={policy!r} is unknown: use {' or '.join(known)}.{f' Did you mean {near[0]}?' if near else ''}"
        )


def require_length(max_length: int | None) -> None:
    """Refuse a length that no sequence can have."""
    if max_length is not None and max_length < 1:
        raise ConfigError(
            f"max_length={max_length} is not a length: use a number of tokens above 0, or None for no limit."
        )


def cut_prompt(ids: Sequence[int], count: int, *, keep: int) -> list[int]:
    """A sequence without `count` tokens at the beginning of its prompt; the first `keep` tokens stay.

    Example:
        >>> cut_prompt([101, 7, 8, 9, 102], 2, keep=1)
        [101, 9, 102]
    """
    return [*ids[:keep], *ids[keep + count :]]


def cut_pair(
    chosen: Sequence[int], rejected: Sequence[int], *, max_length: int, prompt_length: int, keep: int
) -> tuple[list[int], list[int]] | None:
    """Both sequences with the same piece cut from the beginning of their prompt, so that the longer one fits.

    Args:
        chosen: token ids.
        rejected: token ids.
        max_length: tokens a sequence may have.
        prompt_length: leading tokens that are the prompt on both sides, `keep` included.
        keep: leading tokens that stay (BOS or CLS).

    Returns:
        The two sequences, answers whole; None when the answers do not fit.

    Example:
        >>> cut_pair([1, 5, 6, 7, 10], [1, 5, 6, 7, 11, 12], max_length=4, prompt_length=4, keep=1)
        ([1, 7, 10], [1, 7, 11, 12])
    """
    excess = max(len(chosen), len(rejected)) - max_length
    if excess > prompt_length - keep:
        return None
    return cut_prompt(chosen, excess, keep=keep), cut_prompt(rejected, excess, keep=keep)


def cut_answer(ids: Sequence[int], max_length: int, *, closing: int) -> list[int]:
    """A sequence without the end of its answer; the last `closing` tokens (EOS or SEP) stay.

    Example:
        >>> cut_answer([1, 5, 6, 7, 2], 3, closing=1)
        [1, 5, 2]
    """
    closing = min(closing, max_length)
    return [*ids[: max_length - closing], *ids[len(ids) - closing :]]
