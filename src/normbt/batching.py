"""Arrange the pairs of one optimizer step: into micro-batches under a token budget, balanced over ranks."""

from collections.abc import Callable, Sequence

Arrangement = Callable[[Sequence[int], int], list[list[int]]]
"""Puts pairs, given by their tokens, into micro-batches under a budget."""


def arrange(tokens: Sequence[int], token_budget: int) -> list[list[int]]:
    """Put pairs into as few micro-batches as first-fit decreasing finds, none over the budget.

    The longest pair is placed first, each pair in the first micro-batch with room for it. A pair longer than the
    budget is alone in its micro-batch.

    Args:
        tokens: tokens of each pair, positive.
        token_budget: most tokens of a micro-batch, positive.

    Returns:
        Micro-batches as positions in ``tokens``: every position once, ascending inside a micro-batch.

    Raises:
        ValueError: the budget or a pair has no token.

    Example:
        >>> arrange([3, 9, 4, 6, 2], token_budget=10)
        [[1], [2, 3], [0, 4]]
    """
    _check_positive(tokens, token_budget)
    batches: list[list[int]] = []
    room: list[int] = []
    for pair in _largest_first(tokens):
        fitting = next((batch for batch, free in enumerate(room) if tokens[pair] <= free), None)
        if fitting is None:
            batches.append([pair])
            room.append(token_budget - tokens[pair])
        else:
            batches[fitting].append(pair)
            room[fitting] -= tokens[pair]
    return [sorted(batch) for batch in batches]


def arrange_by_length(tokens: Sequence[int], token_budget: int) -> list[list[int]]:
    """Put pairs of similar length together, so that rows padded to the longest of them hold little padding.

    From the longest pair down, each joins the micro-batch before it as long as all of its pairs, padded to the longest,
    stay within the budget. A pair longer than the budget is alone in its micro-batch.

    Args:
        tokens: tokens of each pair when its own two sequences are padded to each other, positive.
        token_budget: most tokens of a micro-batch, padding included, positive.

    Returns:
        Micro-batches as positions in ``tokens``: every position once, ascending inside a micro-batch.

    Raises:
        ValueError: the budget or a pair has no token.

    Example:
        >>> arrange_by_length([3, 9, 4, 6, 2], token_budget=10)
        [[1], [3], [0, 2], [4]]
    """
    _check_positive(tokens, token_budget)
    batches: list[list[int]] = []
    for pair in _largest_first(tokens):
        if batches and tokens[batches[-1][0]] * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(pair)
        else:
            batches.append([pair])
    return [sorted(batch) for batch in batches]


def balance(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Share pairs out over ranks so that the ranks' costs are nearly equal: the dearest first, to the least loaded.

    Args:
        costs: cost of each pair, in any one unit.
        ranks: number of processes, positive.

    Returns:
        For each rank its positions in ``costs``, ascending; every position once. The largest total is at most 4/3 of
        the least possible one.

    Raises:
        ValueError: there is no rank.

    Example:
        >>> balance([5, 4, 3, 3, 3], ranks=2)
        [[0, 3], [1, 2, 4]]

    References:
        Graham 1969, "Bounds on multiprocessing timing anomalies" (longest processing time first).
    """
    if ranks < 1:
        raise ValueError(f"ranks must be positive, got {ranks}")
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for pair in _largest_first(costs):
        # Equal loads go to the rank with fewer pairs, so that pairs without cost are spread too.
        least = min(range(ranks), key=lambda rank: (loads[rank], len(shares[rank])))
        shares[least].append(pair)
        loads[least] += costs[pair]
    return [sorted(share) for share in shares]


def plan_step(
    tokens: Sequence[int],
    costs: Sequence[float],
    *,
    token_budget: int,
    ranks: int = 1,
    arrange: Arrangement = arrange,
    agree: Callable[[int], int] = int,
) -> list[list[list[int]]]:
    """The micro-batches of each rank for one optimizer step.

    The pairs of the step are given; only their arrangement is chosen here. So the loss, divided by the number of
    pairs of the step, and the mean distance do not depend on budget or ranks. Every rank gets the same number of
    micro-batches, as sharded training needs; where pairs are too few for that, the last ones are empty.

    Args:
        tokens: tokens of each pair of the step.
        costs: cost of each pair, in the same order.
        token_budget: most tokens of a micro-batch; a longer pair is alone.
        ranks: number of processes.
        arrange: puts the pairs of a rank into micro-batches: :func:`arrange`, or :func:`arrange_by_length`.
        agree: from the number of micro-batches that these pairs need to the number wanted, which is not smaller; for
            ranks whose pairs are not all among these.

    Returns:
        Positions in ``tokens``, as ``plan[rank][micro_batch]``.

    Example:
        >>> plan_step([3, 9, 4, 6, 2], [3, 9, 4, 6, 2], token_budget=10, ranks=2)
        [[[1], [0]], [[2, 3], [4]]]
    """
    plan = []
    for share in balance(costs, ranks):
        batches = arrange([tokens[pair] for pair in share], token_budget)
        plan.append([[share[position] for position in batch] for batch in batches])
    count = agree(max(map(len, plan)))
    return [_split_to(batches, count, tokens) for batches in plan]


def _split_to(batches: list[list[int]], count: int, tokens: Sequence[int]) -> list[list[int]]:
    """Split the largest micro-batches in two until there are ``count``; empty ones when pairs run out."""
    batches = list(batches)
    while len(batches) < count and any(len(batch) > 1 for batch in batches):
        splittable = [batch for batch in batches if len(batch) > 1]
        largest = max(splittable, key=lambda batch: sum(tokens[pair] for pair in batch))
        batches.remove(largest)
        halves = balance([tokens[pair] for pair in largest], 2)
        batches += [[largest[position] for position in half] for half in halves]
    batches += [[] for _ in range(count - len(batches))]
    return batches


def _check_positive(tokens: Sequence[int], token_budget: int) -> None:
    if token_budget < 1 or any(count < 1 for count in tokens):
        raise ValueError(f"token_budget and tokens must be positive, got {token_budget} and {list(tokens)}")


def _largest_first(sizes: Sequence[float]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda position: (-sizes[position], position))
