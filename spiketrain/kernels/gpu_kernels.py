"""The passes of the leaky scan as Triton kernels. `gpu.py` launches them; the equations are those of `leaky.py`.

Memory is `[T,P,C,Q]`: time, places before the channel axis, channels, places after it. A program owns a tile of BN places
by BC channels for all T steps, so that the potential never leaves its registers; time is a loop, K steps of it unrolled at
once. Place n = p·Q + q lies at offset p·C·Q + c·Q + q of a step: with Q = 1 (channels-last) a tile is BC channels wide, else
it is BN places of one channel, and neighbouring threads read neighbouring memory either way.

Offsets are 64 bits wide. Nothing is added atomically: what is summed over places is written once a tile, to `[rows,...]`,
and summed by the caller, so the same input gives the same bits.
"""

# Triton compiles a subset of Python: tuples grow by addition, and what is known at compile time is decided by if and else.
# ruff: noqa: RUF005, RET505, PLR0911, PLR0915
import triton
import triton.language as tl

HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def _slope(x, alpha, SURROGATE: tl.constexpr):
    """g(x, alpha) of `functional.SURROGATES`."""
    if SURROGATE == "atan":
        a = HALF_PI * alpha * x
        return alpha / 2 / (1 + a * a)
    elif SURROGATE == "qgate":
        return tl.maximum(alpha - alpha * alpha * tl.abs(x), 0.0)
    elif SURROGATE == "gate":
        return (tl.abs(x) * alpha < 1).to(x.dtype)
    elif SURROGATE == "sigmoid":
        y = 1 / (1 + tl.exp(-alpha * x))
        return alpha * y * (1 - y)
    elif SURROGATE == "straight_through":
        return alpha + tl.zeros_like(x)
    elif SURROGATE == "relu":
        return alpha * (x > 0).to(x.dtype)
    elif SURROGATE == "triangle":
        return tl.maximum(1 - alpha * tl.abs(x), 0.0)
    elif SURROGATE == "rectangle":
        return alpha * (2 * alpha * tl.abs(x) < 1).to(x.dtype)
    else:
        tl.static_assert(SURROGATE == "superspike")
        a = 1 + alpha * tl.abs(x)
        return 1 / (a * a)


@triton.jit
def _alpha_slope(x, alpha, SURROGATE: tl.constexpr):
    """The derivative by alpha of g's primitive; 0 where it has none."""
    if SURROGATE == "atan":
        a = HALF_PI * alpha * x
        return x / 2 / (1 + a * a)
    elif SURROGATE == "sigmoid":
        y = 1 / (1 + tl.exp(-alpha * x))
        return x * y * (1 - y)
    elif SURROGATE == "relu":
        return tl.maximum(x, 0.0)
    else:
        return tl.zeros_like(x)


@triton.jit
def _places(tile, N, C, Q, c, BN: tl.constexpr, LAST: tl.constexpr, SPLIT: tl.constexpr):
    """Offsets in a step, and which of them exist, of the tile of that number at channels c."""
    n = tile * BN + tl.arange(0, BN)
    c = c[None, :].to(tl.int64)
    wide = n[:, None].to(tl.int64)
    if LAST:  # Q = 1
        offsets = wide * C + c
    elif SPLIT:  # P > 1 and Q > 1
        p = n // Q
        offsets = (p[:, None].to(tl.int64) * C + c) * Q + (n - p * Q)[:, None]
    else:  # P = 1
        offsets = c * Q + wide
    return offsets, (n < N)[:, None] & (c < C)


@triton.jit
def _numbers(pointer, c, C, MANY: tl.constexpr):
    """One number a channel, `[1,BC]`, or the one number there is."""
    if MANY:
        return tl.load(pointer + c, mask=c < C, other=0)[None, :]
    else:
        return tl.load(pointer)


@triton.jit
def _fire(u, threshold, STRICT: tl.constexpr):
    if STRICT:
        return u - threshold > 0
    else:
        return u - threshold >= 0


@triton.jit
def _reset(u, s, threshold, HARD: tl.constexpr):
    """v after u and its spike s (a truth value); a u that is no number stays none."""
    if HARD:
        return u - tl.where(s, u, 0.0)
    else:
        return u - tl.where(s, threshold, 0.0)


@triton.jit
def _row(pointer, t, c, C):
    """Numbers of step t, one a channel, `[1,BC]`."""
    return tl.load(pointer + t * C + c, mask=c < C, other=0)[None, :]


@triton.jit
def _load(pointer, t0, M, at, mask, T, K: tl.constexpr, SHORT: tl.constexpr, CONSTANT: tl.constexpr):
    """The tile of steps t0 to t0 + K − 1; zeros after step T − 1."""
    found = ()
    for k in tl.static_range(K):
        if CONSTANT:
            found = found + (tl.load(pointer + at, mask=mask, other=0),)
        elif SHORT:
            found = found + (tl.load(pointer + (t0 + k) * M + at, mask=mask, other=0),)
        else:
            found = found + (tl.load(pointer + (t0 + k) * M + at, mask=mask & (t0 + k < T), other=0),)
    return found


@triton.jit
def _charge(
    xs, state, d, g, h, scale, shift, t0, T, c, C,
    A: tl.constexpr, K: tl.constexpr, SHORT: tl.constexpr, PER_STEP: tl.constexpr, HARD: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """u and y of K steps, and the potential after them (after step T − 1 where that comes first)."""
    us = ()
    ys = ()
    if scale is not None:
        a = _row(scale, 0, c, C)
        b = _row(shift, 0, c, C)
    for k in tl.static_range(K):
        y = xs[k].to(A)
        if PER_STEP:
            a = _row(scale, min(t0 + k, T - 1), c, C)
            b = _row(shift, min(t0 + k, T - 1), c, C)
        if scale is not None:
            y = a * y + b
        u = d * state + g * y
        after = _reset(u, _fire(u, h, STRICT), h, HARD)
        state = after if SHORT else tl.where(t0 + k < T, after, state)
        us = us + (u,)
        ys = ys + (y,)
    return us, ys, state


@triton.jit
def forward_kernel(
    x, v, scale, shift, decay, gain, threshold, spikes, v_last, starts,
    T, N, C, Q, M, SIZE,
    A: tl.constexpr, K: tl.constexpr, SHORT: tl.constexpr, CONSTANT: tl.constexpr, PER_STEP: tl.constexpr,
    MANY: tl.constexpr, HARD: tl.constexpr, STRICT: tl.constexpr,
    BC: tl.constexpr, LAST: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Spikes `[T,M]` and the last potential `[M]`, or instead the potentials before steps 0, K, 2K, … in `starts`."""
    BN: tl.constexpr = BLOCK // BC
    blocks = tl.cdiv(C, BC)
    tile = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    if WIDE:
        tile = tile.to(tl.int64)
    at, mask = _places(tile, N, C, Q, c, BN, LAST, SPLIT)
    M = tl.cast(M, tl.int64)
    d = _numbers(decay, c, C, MANY & 1)
    g = _numbers(gain, c, C, MANY & 2)
    h = _numbers(threshold, c, C, MANY & 4)
    state = tl.zeros([BN, BC], A)
    if v is not None:
        state = tl.load(v + at, mask=mask, other=0)
    for t0 in range(0, T, K):
        if starts is not None:
            tl.store(starts + t0 // K * M + at, state, mask=mask)
        # before the first store, which the compiler could not move loads over
        xs = _load(x, t0, M, at, mask, T, K, SHORT, CONSTANT)
        us, _, state = _charge(xs, state, d, g, h, scale, shift, t0, T, c, C, A, K, SHORT, PER_STEP, HARD, STRICT)
        for k in tl.static_range(K):
            if spikes is not None:
                here = mask if SHORT else mask & (t0 + k < T)
                tl.store(spikes + (t0 + k) * M + at, tl.where(_fire(us[k], h, STRICT), 1.0, 0.0).to(spikes.dtype.element_ty), mask=here)
    if v_last is not None:
        tl.store(v_last + at, state, mask=mask)


@triton.jit
def _store_rows(pointer, terms, tile, rows, width, columns, exists, R: tl.constexpr):
    """Σ of terms `[BN,BC]` over places, to row tile·R of `[rows,width]`; zeros to the R − 1 rows that a smaller tile would fill."""
    r = tl.arange(0, R)[:, None]
    row = tile.to(tl.int64) * R + r
    total = tl.where(r == 0, tl.sum(terms, 0)[None, :], 0.0)
    tl.store(pointer + row * width + columns[None, :], total, mask=(row < rows) & exists[None, :])


@triton.jit
def _adjoint(u, s, grad_s, lam, h, steep, SURROGATE: tl.constexpr, HARD: tl.constexpr, DETACH: tl.constexpr):
    """∂u, e·g and e of one step (`leaky.py` has the equations)."""
    e = grad_s
    if not DETACH:
        e = e - lam * (u if HARD else h)
    hill = e * _slope(u - h, steep, SURROGATE)
    return hill + (tl.where(s, 0.0, lam) if HARD else lam), hill, e


@triton.jit
def _through_norm(x, mu, r, scale, m1, m2):
    """What the statistics of the norm take off a gradient by x: m1 and m2 are the means of ∂y and of ∂y·x̂."""
    return scale * (m1 + (x - mu) * r * m2)


@triton.jit
def backward_kernel(
    x, v, starts, grad_s, grad_v, scale, shift, mean, rstd, norm_means, decay, gain, threshold, alpha,
    grad_x, grad_v0, norm_sums, sums,
    T, N, C, Q, M, S, rows, SIZE,
    A: tl.constexpr, K: tl.constexpr, SHORT: tl.constexpr, CONSTANT: tl.constexpr, PER_STEP: tl.constexpr, APART: tl.constexpr,
    MANY: tl.constexpr, NEEDS: tl.constexpr, SURROGATE: tl.constexpr,
    HARD: tl.constexpr, DETACH: tl.constexpr, STRICT: tl.constexpr, THROUGH: tl.constexpr,
    BC: tl.constexpr, LAST: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The adjoint, from the last K steps to the first; u is computed again from x and from the potentials in `starts`.

    Written where there is a pointer: grad_x (with the norm's own correction where norm_means is given), grad_v0,
    norm_sums `[2,rows,S,C]` (Σ∂y, Σ∂y·x̂), sums `[4,rows,C]` (of the coefficients in NEEDS). PER_STEP: scale and shift `[S,C]`
    have a row a step; APART: so have mean, rstd and norm_means `[2,·,C]`, else these have one row, and norm_means is of ∂y times the
    weight of its step. An x that is the same at every step has one row of statistics, and is corrected once.
    """
    OWN: tl.constexpr = PER_STEP and not APART  # each step has its own weight
    BN: tl.constexpr = BLOCK // BC
    R: tl.constexpr = BN // UNIT
    blocks = tl.cdiv(C, BC)
    tile = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    if WIDE:
        tile = tile.to(tl.int64)
    at, mask = _places(tile, N, C, Q, c, BN, LAST, SPLIT)
    M = tl.cast(M, tl.int64)
    rows = tl.cast(rows, tl.int64)
    d = _numbers(decay, c, C, MANY & 1)
    g = _numbers(gain, c, C, MANY & 2)
    h = _numbers(threshold, c, C, MANY & 4)
    steep = _numbers(alpha, c, C, MANY & 8)
    zero = tl.zeros([BN, BC], A)
    lam, grad_total, sum_y, sum_yx = zero, zero, zero, zero
    sum_decay, sum_gain, sum_threshold, sum_alpha = zero, zero, zero, zero
    if grad_v is not None:
        lam = tl.load(grad_v + at, mask=mask, other=0)
    if scale is not None:
        a = _row(scale, 0, c, C)
    if mean is not None:
        mu = _row(mean, 0, c, C)
        r = _row(rstd, 0, c, C)
    if norm_means is not None:
        m1 = _row(norm_means, 0, c, C)
        m2 = _row(norm_means, S if APART else 1, c, C)
    chunks = tl.cdiv(T, K)
    for i in range(0, chunks):
        t0 = (chunks - 1 - i) * K
        start = zero
        if starts is not None:
            start = tl.load(starts + (chunks - 1 - i) * M + at, mask=mask, other=0)
        elif v is not None:
            start = tl.load(v + at, mask=mask, other=0)
        xs = _load(x, t0, M, at, mask, T, K, SHORT, CONSTANT)
        grads = _load(grad_s, t0, M, at, mask, T, K, SHORT, False)
        us, ys, _ = _charge(xs, start, d, g, h, scale, shift, t0, T, c, C, A, K, SHORT, PER_STEP, HARD, STRICT)
        for k in tl.static_range(K - 1, -1, -1):
            t = t0 + k
            held = lam if SHORT else tl.where(t < T, lam, 0.0)  # ∂s is 0 after the last step too, so all terms are
            u = us[k]
            s = _fire(u, h, STRICT)
            grad_u, hill, e = _adjoint(u, s, grads[k].to(A), held, h, steep, SURROGATE, HARD, DETACH)
            if NEEDS & 1:
                before = start if k == 0 else _reset(us[k - 1], _fire(us[k - 1], h, STRICT), h, HARD)
                sum_decay += grad_u * before
            if NEEDS & 2:
                sum_gain += grad_u * ys[k]
            if NEEDS & 4:
                sum_threshold -= hill if HARD else hill + tl.where(s, held, 0.0)
            if NEEDS & 8:
                sum_alpha += e * _alpha_slope(u - h, steep, SURROGATE)
            grad = g * grad_u
            if PER_STEP:
                now = min(t, T - 1)
                a = _row(scale, now, c, C)
                if APART:
                    mu = _row(mean, now, c, C)
                    r = _row(rstd, now, c, C)
                    if norm_means is not None:
                        m1 = _row(norm_means, now, c, C)
                        m2 = _row(norm_means, S + now, c, C)
            if norm_sums is not None:
                hat = (xs[k].to(A) - mu) * r
                if PER_STEP:
                    exists = (c < C) & (t < T)
                    _store_rows(norm_sums, grad, tile, rows, S * C, t * C + c, exists, R)
                    _store_rows(norm_sums, grad * hat, tile, rows, S * C, (rows * S + t) * C + c, exists, R)
                else:
                    sum_y += grad
                    sum_yx += grad * hat
            if grad_x is not None:
                if scale is not None:
                    grad = a * grad
                if CONSTANT:
                    grad_total += grad
                else:
                    if norm_means is not None:
                        grad = grad - _through_norm(xs[k].to(A), mu, r, r if OWN else a, m1, m2)
                    here = mask if SHORT else mask & (t < T)
                    tl.store(grad_x + t * M + at, grad.to(grad_x.dtype.element_ty), mask=here)
            back = d * grad_u if THROUGH else zero
            lam = back if SHORT else tl.where(t < T, back, lam)
    if CONSTANT and grad_x is not None:
        if norm_means is not None:
            grad_total -= _through_norm(tl.load(x + at, mask=mask, other=0).to(A), mu, r, r if OWN else a, m1, m2)
        tl.store(grad_x + at, grad_total.to(grad_x.dtype.element_ty), mask=mask)
    if grad_v0 is not None:
        tl.store(grad_v0 + at, lam, mask=mask)
    if norm_sums is not None and not PER_STEP:
        _store_rows(norm_sums, sum_y, tile, rows, C, c, c < C, R)
        _store_rows(norm_sums, sum_yx, tile, rows, C, rows * C + c, c < C, R)
    of_each = (sum_decay, sum_gain, sum_threshold, sum_alpha)
    for i in tl.static_range(4):
        if NEEDS & (1 << i):
            _store_rows(sums, of_each[i], tile, rows, C, i * rows * C + c, c < C, R)


@triton.jit
def moments_kernel(
    x, parts, T, N, C, Q, M, G, SIZE,
    A: tl.constexpr, PER_STEP: tl.constexpr,
    BC: tl.constexpr, LAST: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count, mean and Σ(x − mean)² of what one of G programs sees, to parts `[3,G,S,C]`.

    Every G-th tile, all steps or (PER_STEP) one. Sums are taken of x less the mean of the first tile, so that little cancels.
    """
    BN: tl.constexpr = BLOCK // BC
    blocks = tl.cdiv(C, BC)
    c = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    group = tl.program_id(0) // blocks
    if WIDE:
        group = group.to(tl.int64)
    first = tl.program_id(1) if PER_STEP else 0
    last = first + 1 if PER_STEP else T
    S = T if PER_STEP else 1
    M = tl.cast(M, tl.int64)
    tiles = tl.cdiv(N, BN)
    at, mask = _places(group, N, C, Q, c, BN, LAST, SPLIT)
    seen = tl.minimum(tl.maximum(N - group * BN, 1), BN).to(A)
    pivot = (tl.sum(tl.load(x + first * M + at, mask=mask, other=0).to(A), 0) / seen)[None, :]
    sum1 = tl.zeros([BN, BC], A)
    sum2 = tl.zeros([BN, BC], A)
    count = seen * 0
    for tile in range(group, tiles, G):
        at, mask = _places(tile, N, C, Q, c, BN, LAST, SPLIT)
        count += (tl.minimum(N - tile * BN, BN) * (last - first)).to(A)
        for t in tl.range(first, last, loop_unroll_factor=4):
            far = tl.where(mask, tl.load(x + t * M + at, mask=mask, other=0).to(A) - pivot, 0.0)
            sum1 += far
            sum2 += far * far
    shift = tl.sum(sum1, 0) / tl.maximum(count, 1.0)
    to = (group * S + first) * C + c
    tl.store(parts + to, tl.zeros([BC], A) + count, mask=c < C)
    tl.store(parts + G * S * C + to, tl.sum(pivot, 0) + shift, mask=c < C)
    tl.store(parts + 2 * G * S * C + to, tl.maximum(tl.sum(sum2, 0) - shift * shift * count, 0.0), mask=c < C)


@triton.jit
def merge_kernel(parts, mean, var, G, J, ROWS: tl.constexpr, BJ: tl.constexpr):
    """Mean and biased variance `[J]` of all from parts `[3,G,J]` (count, mean, Σ(x − mean)²), summed in float64."""
    j = tl.program_id(0) * BJ + tl.arange(0, BJ)
    row = tl.arange(0, ROWS)[:, None]
    at = row * J + j[None, :]
    mask = (row < G) & (j < J)[None, :]
    count = tl.load(parts + at, mask=mask, other=0).to(tl.float64)
    means = tl.load(parts + G * J + at, mask=mask, other=0).to(tl.float64)
    squares = tl.load(parts + 2 * G * J + at, mask=mask, other=0).to(tl.float64)
    n = tl.maximum(tl.sum(count, 0), 1)
    middle = tl.sum(count * means, 0) / n
    far = means - middle[None, :]
    spread = tl.sum(squares + count * far * far, 0) / n
    tl.store(mean + j, middle.to(mean.dtype.element_ty), mask=j < J)
    tl.store(var + j, spread.to(var.dtype.element_ty), mask=j < J)
