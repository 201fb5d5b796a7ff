"""Watch a forward for the operations that read parameters, and cut the parameters out of its graph there.

Not the modules are watched but what they do: a scaled embedding, an adapter or any module of a user's own is right as
soon as its parameters enter operations that are known here. A parameter that enters another one stays in the graph,
where :func:`remaining_uses` finds it. So nothing is missed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from normbt.gradients.formulas import widened
from normbt.gradients.refusal import GhostRefusal
from normbt.gradients.tally import Lookup, Outer, Part, Tally, Vector

_CASTS = (Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type_as)
_ADDITIONS = (Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add)
_PRODUCTS = (Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul)

Maker = Callable[[Tensor], Part]
"""From the gradient of an operation's output to what a parameter receives."""


class ParameterUses(TorchFunctionMode):
    """While active, every known operation on the parameters reports to the tally what they receive in the backward.

    Args:
        parameters: those to watch; they require a gradient, nothing else does.
        tally: where the parts go; its places say whose rows are whose.

    Attributes:
        leaves: outputs that the backward ends at, since nothing they depend on requires a gradient.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], tally: Tally) -> None:
        super().__init__()
        self.tally = tally
        self.leaves: list[Tensor] = []
        self._numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
        self._derived: list[Tensor] = []  # kept, so that no other tensor gets their id
        self._handlers: dict[Any, Callable[..., Any]] = {
            functional.linear: self._linear,
            torch.addmm: self._addmm,
            functional.embedding: self._embedding,
            functional.layer_norm: self._layer_norm,
            functional.rms_norm: self._rms_norm,
            **dict.fromkeys(_CASTS, self._cast),
            **dict.fromkeys(_ADDITIONS, self._add),
            **dict.fromkeys(_PRODUCTS, self._mul),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Hand a known operation on a watched parameter to its handler, and run everything else."""
        kwargs = kwargs or {}
        handler = self._handlers.get(func)
        if (
            handler is None
            or not any(id(value) in self._numbers for value in (*args, *kwargs.values()))
            or not torch.is_grad_enabled()  # no gradient passes here, in no method
        ):
            return func(*args, **kwargs)
        output = handler(func, *args, **kwargs)
        return func(*args, **kwargs) if output is None else output

    # --- operations: each returns its output, or None to leave its parameters in the graph ---

    def _linear(self, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        output = func(x, self._cut(weight), self._cut(bias))
        read = self._reading(x, weight)
        return self._watched(func, output, {weight: lambda d: Outer(read(), d), bias: self._summed}, matrix=True)

    def _addmm(
        self, func: Any, bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor | None:
        if (beta, alpha) != (1, 1) or bias.dim() != 1:
            return None
        output = func(self._cut(bias), x, self._cut(weight))
        read = self._reading(x, weight)
        return self._watched(func, output, {weight: lambda d: Outer(read(), d), bias: self._summed}, matrix=True)

    def _embedding(
        self,
        func: Any,
        ids: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor | None:
        if max_norm is not None or scale_grad_by_freq:
            return None
        output = func(ids, weight.detach(), padding_idx)
        if padding_idx is not None and padding_idx < 0:
            padding_idx += len(weight)
        places = self.tally.places
        if ids.shape[:1] == (1,) and ids.dim() > 1 and not places.packed:
            # The positions of GPT-2: looked up once for all rows. Each row needs a gradient of its own.
            ids, output = ids.expand(places.rows, *ids.shape[1:]), output.expand(places.rows, *output.shape[1:])
        read = self._reading(ids, weight)
        return self._watched(func, output, {weight: lambda d: Lookup(read(), d, len(weight), padding_idx)})

    def _layer_norm(
        self,
        func: Any,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor | None:
        output = func(x, normalized_shape, self._cut(weight), self._cut(bias), eps)
        read = self._reading(x, weight)
        axes = len(normalized_shape)

        def scaled(d: Tensor) -> Vector:
            return self._summed(d * func(widened(read()), normalized_shape, None, None, eps).flatten(-axes))

        return self._watched(func, output, {weight: scaled, bias: self._summed}, axes=axes)

    def _rms_norm(
        self, func: Any, x: Tensor, normalized_shape: Sequence[int], weight: Tensor, eps: float | None = None
    ) -> Tensor | None:
        output = func(x, normalized_shape, self._cut(weight), eps)
        read = self._reading(x, weight)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        axes = len(normalized_shape)

        def scaled(d: Tensor) -> Vector:
            return self._summed(d * func(widened(read()), normalized_shape, None, eps).flatten(-axes))

        return self._watched(func, output, {weight: scaled}, axes=axes)

    def _mul(self, func: Any, first: Any, second: Any) -> Tensor | None:
        x, vector = (first, second) if id(second) in self._numbers else (second, first)
        if not self._is_row_vector(vector, x):
            return None
        read = self._reading(x, vector)
        return self._watched(func, func(x, vector.detach()), {vector: lambda d: self._summed(d * widened(read()))})

    def _add(self, func: Any, first: Any, second: Any, *, alpha: float = 1) -> Tensor | None:
        x, vector = (first, second) if id(second) in self._numbers else (second, first)
        if alpha != 1:
            return None
        if isinstance(x, Number):  # the 1 + weight of Gemma
            return self._same_gradient(vector + x, vector)
        if not self._is_row_vector(vector, x):
            return None
        return self._watched(func, func(x, vector.detach()), {vector: self._summed})

    def _cast(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        if id(tensor) not in self._numbers:
            return None
        return self._same_gradient(func(tensor, *args, **kwargs), tensor)

    # --- what they share ---

    def _cut(self, tensor: Tensor | None) -> Tensor | None:
        """A watched tensor without its gradient; one that was computed from others keeps its own."""
        return tensor.detach() if tensor is not None and id(tensor) in self._numbers else tensor

    def _same_gradient(self, derived: Tensor, source: Tensor) -> Tensor:
        """Watch a tensor that was made of a watched one and has the same gradient."""
        if derived.requires_grad:
            self._derived.append(derived)
            self._numbers[id(derived)] = self._numbers[id(source)]
        return derived

    def _is_row_vector(self, vector: Tensor, x: Any) -> bool:
        """Whether a watched vector meets the last axis of something that isn't watched."""
        return (
            isinstance(x, Tensor) and id(x) not in self._numbers and vector.dim() == 1 and x.dim() > 1
        ) and vector.shape == x.shape[-1:]

    def _summed(self, d: Tensor) -> Vector:
        return Vector(self.tally.places.sums(d))

    def _reading(self, x: Tensor, parameter: Tensor | None) -> Callable[[], Tensor]:
        """Hand out later what an operation reads now; it must not be overwritten in between."""
        x = x.detach()
        version = None if x.is_inference() else x._version

        def read() -> Tensor:
            if version is not None and x._version != version:
                name = self.tally.names[self._numbers.get(id(parameter), 0)]
                raise GhostRefusal(f"what {name} was applied to was overwritten in place.")
            return x

        return read

    def _watched(
        self, func: Any, output: Tensor, makers: Mapping[Tensor | None, Maker], *, axes: int = 1, matrix: bool = False
    ) -> Tensor:
        """Have the gradient of an output turned into the parts of the watched parameters, once it arrives."""
        watched = {self._numbers[id(tensor)]: make for tensor, make in makers.items() if id(tensor) in self._numbers}
        for number in watched:
            self.tally.expect(number, output.shape[:-axes], getattr(func, "__name__", str(func)), matrix=matrix)

        def arrived(d: Tensor) -> None:
            d = widened(d).flatten(-axes)
            for number, make in watched.items():
                self.tally.add(number, make(d))
            watched.clear()  # the graph keeps this hook, and would keep what the operation read

        if output.requires_grad:
            output.register_hook(arrived)
            return output
        leaf = output.detach().requires_grad_()
        leaf.register_hook(arrived)
        self.leaves.append(leaf)
        return leaf.clone()  # a leaf must not be changed in place, and models do that with embeddings


def remaining_uses(output: Tensor, parameters: Sequence[nn.Parameter]) -> Iterator[tuple[int, str]]:
    """Which parameters an output still depends on, and by which operation.

    Args:
        output: something with a graph.
        parameters: those looked for.

    Yields:
        Number of a parameter, and the name of the graph's node that leads to it.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> list(remaining_uses((3 * weight).sum(), [weight]))
        [(0, 'MulBackward0')]
    """
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    pending: list[Any] = [output.grad_fn]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            number = numbers.get(id(getattr(following, "variable", None)))
            if number is not None:
                yield number, node.name()
            pending.append(following)
