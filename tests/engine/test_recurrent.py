"""Layers with a memory: step by step, in chunks of any size and at once they come to the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aprtui.engine.recurrent import channel_scan, delta_scan, linear_scan

BAR = 1e-5  # docs/numerics.md 1
TOKENS, HEADS, KEY, VALUE = 150, 3, 8, 12


def given(dtype: torch.dtype, rows: int = 1) -> tuple[torch.Tensor, ...]:
    """q, k, v, g and beta; g of each of ``rows`` of the state."""
    made = torch.Generator().manual_seed(5)
    q, k, v = (
        torch.randn(TOKENS, HEADS, size, generator=made, dtype=torch.float64)
        for size in (KEY, KEY, VALUE)
    )
    k = k / k.norm(dim=-1, keepdim=True)
    g = -torch.rand(TOKENS, HEADS, rows, generator=made, dtype=torch.float64)
    beta = torch.rand(TOKENS, HEADS, generator=made, dtype=torch.float64)
    return tuple(each.to(dtype) for each in (q, k, v, g, beta))


def by_definition(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule token by token, in numpy and float64."""
    q, k, v, g, beta = (each.numpy() for each in given(torch.float64, rows))
    state, out = np.zeros((HEADS, KEY, VALUE)), np.zeros((TOKENS, HEADS, VALUE))
    for t in range(TOKENS):
        for h in range(HEADS):
            state[h] *= np.exp(g[t, h])[:, None]
            missed = beta[t, h] * (v[t, h] - k[t, h] @ state[h])
            state[h] += np.outer(k[t, h], missed)
            out[t, h] = q[t, h] @ state[h]
    return out, state


@pytest.mark.parametrize("rows", [1, KEY])
@pytest.mark.parametrize("chunk", [1, 7, 64, TOKENS])
def test_a_delta_rule_in_chunks_is_the_rule_token_by_token(chunk: int, rows: int) -> None:
    q, k, v, g, beta = given(torch.float32, rows)
    state = torch.zeros(HEADS, KEY, VALUE)
    found = delta_scan(q, k, v, g, beta, state, chunk)
    for made, expected in zip(found, by_definition(rows), strict=True):
        away = np.linalg.norm(made.double().numpy() - expected)
        assert away <= BAR * np.linalg.norm(expected)


@pytest.mark.parametrize("rows", [1, KEY])
def test_a_state_is_gone_on_with(rows: int) -> None:
    """The last state is all that the tokens behind it need."""
    q, k, v, g, beta = given(torch.float64, rows)
    zeros, cut = torch.zeros(HEADS, KEY, VALUE, dtype=torch.float64), 41
    whole, last = delta_scan(q, k, v, g, beta, zeros, 64)
    out, state = delta_scan(q[:cut], k[:cut], v[:cut], g[:cut], beta[:cut], zeros, 64)
    more, end = delta_scan(q[cut:], k[cut:], v[cut:], g[cut:], beta[cut:], state, 64)
    torch.testing.assert_close(torch.cat((out, more)), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 64, TOKENS])
def test_a_scan_in_chunks_is_the_scan_token_by_token(chunk: int) -> None:
    c, b, v, g, _ = given(torch.float32)
    g = g[..., 0]
    found = linear_scan(c, b, v, g, torch.zeros(HEADS, KEY, VALUE), chunk)
    wide = [each.numpy() for each in given(torch.float64)[:4]]
    state, out = np.zeros((HEADS, KEY, VALUE)), np.zeros((TOKENS, HEADS, VALUE))
    for t, (c_t, b_t, v_t, g_t) in enumerate(zip(*wide, strict=True)):
        state = np.exp(g_t)[:, :, None] * state + b_t[:, :, None] * v_t[:, None, :]
        out[t] = np.einsum("nk,nkv->nv", c_t, state)
    for made, expected in zip(found, (out, state), strict=True):
        away = np.linalg.norm(made.double().numpy() - expected)
        assert away <= BAR * np.linalg.norm(expected)


@pytest.mark.parametrize("chunk", [1, 7, 64, TOKENS])
def test_a_scan_of_channels_in_chunks_is_the_scan_token_by_token(chunk: int) -> None:
    channels, state = 5, 4
    made = torch.Generator().manual_seed(6)
    x, dt, b, c, a = (
        torch.randn(*shape, generator=made, dtype=torch.float64)
        for shape in ((TOKENS, channels), (TOKENS, channels), (TOKENS, state), (TOKENS, state),
                      (channels, state))
    )  # fmt: skip
    dt, a = dt.abs(), -a.abs()
    narrow = (x.float(), dt.float(), b.float(), c.float(), a.float())
    found = channel_scan(*narrow, torch.zeros(channels, state), chunk)
    states, out = np.zeros((channels, state)), np.zeros((TOKENS, channels))
    for t in range(TOKENS):
        for channel in range(channels):
            step = float(dt[t, channel])
            for row in range(state):
                states[channel, row] *= np.exp(step * float(a[channel, row]))
                states[channel, row] += step * float(b[t, row]) * float(x[t, channel])
                out[t, channel] += states[channel, row] * float(c[t, row])
    for got, expected in zip(found, (out, states), strict=True):
        away = np.linalg.norm(got.double().numpy() - expected)
        assert away <= BAR * np.linalg.norm(expected)


def test_a_state_of_channels_is_gone_on_with() -> None:
    made = torch.Generator().manual_seed(8)
    x, dt, b, c = (torch.randn(90, 6, generator=made, dtype=torch.float64) for _ in range(4))
    dt, a = dt.abs(), -torch.rand(6, 6, generator=made, dtype=torch.float64)
    whole, last = channel_scan(x, dt, b, c, a, torch.zeros_like(a), 64)
    out, state = channel_scan(x[:41], dt[:41], b[:41], c[:41], a, torch.zeros_like(a), 64)
    more, end = channel_scan(x[41:], dt[41:], b[41:], c[41:], a, state, 64)
    torch.testing.assert_close(torch.cat((out, more)), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=1e-12, atol=1e-12)
