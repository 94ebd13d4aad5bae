"""Changes to a training that cost something, or need one's own code: checkpointing and the chunked loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from optiacts.reporting.errors import ReportError


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated layers: the children of the outermost module lists, in the order of the model."""
    found: list[torch.nn.Module] = []

    def search(module: torch.nn.Module) -> None:
        for child in module.children():
            if isinstance(child, torch.nn.ModuleList) and len(child) > 1:
                found.extend(child)
            else:
                search(child)

    search(model)
    return found


@contextmanager
def checkpointed(layers: list[torch.nn.Module], again: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Runs ``layers`` under ``torch.utils.checkpoint``, not re-entrant, as trainers do it now.

    ``again``: entered around what backward computes again, where modes on functions are off.

    Raises:
        ReportError: afterwards, where none of them was called: the model may take from them what it needs.
    """
    own = [layer.__dict__.get("forward") for layer in layers]
    called: set[int] = set()
    for number, layer in enumerate(layers):
        layer.forward = _recomputed(layer.forward, again, partial(called.add, number))
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            if before is None:
                del layer.__dict__["forward"]
            else:
                layer.forward = before
    if layers and not called:
        kind = type(layers[0]).__name__
        raise ReportError(f"checkpoint: the model calls none of the {len(layers)} layers to checkpoint ({kind})")


def _recomputed(
    forward: Callable[..., Any], again: Callable[[], AbstractContextManager[Any]], called: Callable[[], object]
) -> Callable[..., Any]:
    # The state of the random numbers is kept on the host, and fake tensors have none.
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    how["context_fn"] = lambda: (nullcontext(), again())

    def run(*args: Any, **kwargs: Any) -> Any:
        called()
        return checkpoint(forward, *args, **how, **kwargs)

    return run


def chunked_loss(model: Any, inputs: dict[str, Any]) -> Callable[[], Tensor] | None:
    """A forward of ``model`` whose loss is ``torch.nn.functional.linear_cross_entropy`` in chunks; None if it can't.

    It takes a causal language model of transformers whose logits go to the loss as they are, and PyTorch 2.13.
    """
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options is None or "labels" not in inputs or not type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return None
    head, config = model.get_output_embeddings(), model.config
    changed = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    if not isinstance(head, torch.nn.Linear) or any(getattr(config, name, None) for name in changed):
        return None

    def run() -> Tensor:
        given = {key: value for key, value in inputs.items() if key != "labels"}
        hidden = model.base_model(**given)[0]
        rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        labels = inputs["labels"][:, 1:].reshape(-1)
        return functional.linear_cross_entropy(rows, head.weight, labels, linear_bias=head.bias, options=options())

    return run
