"""Norms: the kernels, and weights that spoil what an output tells."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import optiacts
from optiacts.backends import eager_norm, triton_norm
from optiacts.norms import Norm, Saved

from .common import DTYPES, BrokenPromiseError, Report, relative


def norms(device: torch.device, dry: bool) -> Report:
    """The kernels of norms against the eager backend: relative errors of dx, dw and db in the Euclidean norm.

    Of the remainder bits: how far the middle of the quarter that they name lies from the output in float64, beyond an
    eighth of a unit in the last place, in roundings of float32.
    """
    worst: Report = {}
    shapes = (
        [(37, 100), (5, 16), (3, 2, 768)] if dry else [(37, 100), (5, 16), (3, 2, 768), (4096, 4096), (70_000, 128)]
    )
    for dtype, centered, shape in itertools.product(DTYPES, (True, False), shapes):
        kind = Norm(centered, 1e-5, remainder=True)
        x = (2 + 3 * torch.randn(shape, device=device)).to(dtype)
        scale, shift = (torch.randn(shape[-1], device=device) * 0.2 + at for at in (1.0, 0.0))
        mean, rstd = kind.statistics(x)
        y = ((x.float() - mean) * rstd * scale + shift).to(dtype)
        expected = eager_norm.norm_statistics(x, y, scale, shift, kind)
        found = triton_norm.norm_statistics(x, y, scale, shift, kind)
        name = f"{'layer' if centered else 'rms'} {dtype}"
        errors = {"rstd": relative(found[1], expected[1])}
        if found[2] is not None:
            errors["bits"] = _beyond_the_quarter(x, y, scale, shift, kind, found[2])
        columns = torch.tensor([3, 11], device=device)
        for output, rescued in ((True, None), (True, columns), (False, None)):
            needed = mean if centered and (rescued is not None or not output) else None
            columns_of = None if rescued is None else x.index_select(-1, rescued)
            kept, bits_of = y if output else x, expected[2] if output else None
            saved = Saved(kept, needed, rstd, scale, shift, rescued, columns_of, bits_of, centered, output)
            grad = torch.randn_like(x)
            due, got = (b.norm_backward(grad, saved, torch.float32) for b in (eager_norm, triton_norm))
            for label, ours, theirs in zip(("dx", "dw", "db"), got, due, strict=True):
                errors[label] = max(errors.get(label, 0.0), relative(ours, theirs))
        worst[name] = {k: max(v, worst.get(name, {}).get(k, 0.0)) for k, v in errors.items()}
    if any(v > (4.0 if k == "bits" else 2e-6) for found in worst.values() for k, v in found.items()):
        raise BrokenPromiseError(worst)
    return worst


def _beyond_the_quarter(x: Tensor, y: Tensor, scale: Tensor, shift: Tensor, kind: Norm, bits: Tensor) -> float:
    mean, rstd = kind.statistics(x.double())
    exact = (x.double() - mean) * rstd * scale + shift
    eighth = (eager_norm.refined(y, torch.zeros_like(bits)).double() - y.double()).abs() / 3  # the lowest quarter
    beyond = (eager_norm.refined(y, bits).double() - exact).abs() - eighth
    rounding = torch.finfo(torch.float32).eps * ((x.double().abs() + mean.abs()) * rstd * scale.abs() + shift.abs())
    return max(0.0, float((beyond / rounding).max()))


def norms_are_exact_or_an_error(device: torch.device, dry: bool) -> Report:
    """Dead weights seen and unseen, on a device that the host does not wait for."""
    if dry:
        return {"skipped": "needs a GPU"}
    report: Report = {}
    for dtype in DTYPES:
        module = optiacts.LayerNorm(1024, device=device, dtype=dtype)
        plain = nn.LayerNorm(1024, device=device, dtype=dtype)
        x = torch.randn(512, 1024, device=device).to(dtype).requires_grad_()
        for dead in (0, 5, 1024):
            for each in (module, plain):
                nn.init.constant_(each.weight, 1.0)
                with torch.no_grad():
                    each.weight[:dead] = 0
            y, grad = module(x), torch.randn_like(x)
            if not torch.equal(y, plain(x)):
                raise BrokenPromiseError(f"{dtype}, {dead} dead: output")
            ours = torch.autograd.grad(y, (x, module.weight), grad)
            theirs = torch.autograd.grad(plain(x), (x, plain.weight), grad)
            errors = [
                relative(a, b) if float(b.abs().max()) else float(a.abs().max())
                for a, b in zip(ours, theirs, strict=True)
            ]
            report[f"{dtype}, {dead} dead"] = max(errors)
            if not max(errors) < {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype]:
                raise BrokenPromiseError(report)
        nn.init.ones_(module.weight)
        step = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        module(x).float().square().sum().backward()
        step.step()
        module.weight.data[3] = 0
        module(x).float().square().sum().backward()
        step.step()
        try:
            module(x)
        except optiacts.UnseenChangeError:
            optiacts.norm_weights_changed()
        else:
            raise BrokenPromiseError(f"{dtype}: an unseen change went unnoticed")
        torch.cuda.set_sync_debug_mode("error")
        try:
            module(x.detach().requires_grad_())
        except RuntimeError:
            pass  # the first look waits
        else:
            raise BrokenPromiseError("the first look did not wait: what did it see?")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        module(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            module(x).float().sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return report


def norms_compiled(device: torch.device, dry: bool) -> Report:
    """Compiled, with and without CUDA graphs: gradients, bytes held, and a weight changed unseen."""
    if dry:
        return {"skipped": "needs a GPU"}
    report: Report = {}
    for mode in ("default", "reduce-overhead"):
        torch.compiler.reset()
        optiacts.norm_weights_changed()
        norm, plain_norm = optiacts.LayerNorm(1024), nn.LayerNorm(1024)
        module = nn.Sequential(norm, nn.Linear(1024, 1024)).to(device, torch.bfloat16)
        plain = nn.Sequential(plain_norm, nn.Linear(1024, 1024)).to(device, torch.bfloat16)
        plain.load_state_dict(module.state_dict())
        compiled = torch.compile(module, fullgraph=True, mode=mode)
        x = torch.randn(4096, 1024, device=device, dtype=torch.bfloat16, requires_grad=True)
        worst = 0.0
        for _ in range(4):  # warmed up, captured, replayed
            torch.compiler.cudagraph_mark_step_begin()
            module.zero_grad()
            grad = torch.randn_like(x)
            ours = torch.autograd.grad(compiled(x * 1), (x, *module.parameters()), grad)
            theirs = torch.autograd.grad(plain(x), (x, *plain.parameters()), grad)
            worst = max(worst, *(relative(a, b) for a, b in zip(ours, theirs, strict=True)))
        report[mode] = worst
        if not worst < 1e-2:
            raise BrokenPromiseError(report)
        step = torch.optim.SGD([nn.Parameter(torch.ones(1, device=device))])
        step.step()
        norm.weight.data[3] = 0
        torch.compiler.cudagraph_mark_step_begin()
        (found,) = torch.autograd.grad(compiled(x * 1).sum(), x)
        if not bool(found.isnan().all()):
            raise BrokenPromiseError(f"{mode}: an unseen change did not make the gradient NaN")
        try:
            step.step()
        except optiacts.UnseenChangeError:
            pass
        else:
            raise BrokenPromiseError(f"{mode}: an unseen change went unnoticed")
        plain.load_state_dict(module.state_dict())
        torch.compiler.cudagraph_mark_step_begin()
        ours = torch.autograd.grad(compiled(x * 1), (x, norm.weight), grad)
        theirs = torch.autograd.grad(plain(x), (x, plain_norm.weight), grad)
        report[f"{mode}, afterwards"] = max(relative(a, b) for a, b in zip(ours, theirs, strict=True))
        if not report[f"{mode}, afterwards"] < 1e-2:
            raise BrokenPromiseError(report)
    return report
