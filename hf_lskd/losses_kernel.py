# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""The losses' value and gradient as a GPU computes them: one program a row, in Triton; `losses` says what they are.

`losses_triton` launches these kernels, and says when. A program reads its row of both logits once where BLOCK holds all classes, else
twice: online for the sums of exponentials, then for the gradient, which is all of `[N, C]` that is written. float32 inside. Sums are
kept relative to the running maxima, so that small differences at a high T keep their digits, wherever a row of logits lies.

What `losses.finite` does to log 0 is done here by class: with x = −inf a class has no gradient of the soft loss, and what the teacher
gives to it (`lost`) is multiplied by the largest finite number. Everything else that is not finite makes its own row NaN, as in torch.
"""

import triton
import triton.language as tl


@triton.jit
def at(top):
    """What is taken off logits: their maximum, or 0 where all of them are −inf so far."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def first_best(z, columns):
    """(largest, its first column) of a block; NaN counts as +inf."""
    z = tl.where(z != z, float("inf"), z)
    best = tl.max(z, 0)
    return best, tl.min(tl.where(z == best, columns, 2147483647), 0)


@triton.jit
def load(row, columns, classes):
    return tl.load(row + columns, mask=columns < classes, other=float("-inf")).to(tl.float32)


@triton.jit
def fold_student(x, start, columns, classes, top, total, heated, logits, cool, HARD: tl.constexpr, TAUGHT: tl.constexpr,
                 SAME: tl.constexpr, SMOOTH: tl.constexpr):  # fmt: skip
    """One block more in the student's sums: of exponentials at temperature 1 and at its own, and of the logits, less the largest."""
    new = tl.maximum(top, tl.max(x, 0))
    fall, shifted = top - at(new), x - at(new)
    if HARD or SAME:
        total = total * tl.exp(fall) + tl.sum(tl.exp(shifted), 0)
    if TAUGHT and not SAME:
        heated = heated * tl.exp(fall * cool) + tl.sum(tl.exp(shifted * cool), 0)
    if SMOOTH:
        logits += (at(top) - at(new)) * start + tl.sum(tl.where(columns < classes, shifted, 0.0), 0)
    return new, total, heated, logits


@triton.jit
def fold_teacher(x, t, old_x, new_x, top, kept, lost, apart, energy, cool_x, cool_t, READ: tl.constexpr):
    """One block more in the teacher's sums: of its exponentials (`kept`; `lost` where the student's logit is −inf), and weighted by
    these of how far the two sides are apart and of its own tempered logits.
    """
    new = tl.maximum(top, tl.max(t, 0))
    rise = at(top) - at(new)
    fall = tl.exp((top - at(new)) * cool_t)
    tempered = (t - at(new)) * cool_t
    weight = tl.exp(tempered)
    ruled_out = x == float("-inf")
    apart = (apart + kept * (rise * cool_t - (at(old_x) - at(new_x)) * cool_x)) * fall
    if READ:
        energy = (energy + (kept + lost) * rise * cool_t) * fall
        energy += tl.sum(tl.where(weight > 0, weight * tempered, 0.0), 0)
    counts = (weight > 0) & (x != float("-inf"))
    apart += tl.sum(tl.where(counts, weight * (tempered - (x - at(new_x)) * cool_x), 0.0), 0)
    kept = kept * fall + tl.sum(tl.where(ruled_out, 0.0, weight), 0)
    lost = lost * fall + tl.sum(tl.where(ruled_out, weight, 0.0), 0)
    return new, kept, lost, apart, energy


@triton.jit
def fold_best(z, columns, best, where_best):
    """The first among the largest of all blocks so far."""
    block, place = first_best(z, columns)
    return tl.maximum(best, block), tl.where(block > best, place, where_best)


@triton.jit
def block_gradient(x, t, columns, label, top_x, total, heated, top_t, kept, lost, cool_x, cool_t, hard, soft, gold_share,
                   all_share, HARD: tl.constexpr, SOFT: tl.constexpr, SAME: tl.constexpr):  # fmt: skip
    """The gradient of a block: hard · (q − y_LS) + soft · (q_τ − p)."""
    shifted = x - at(top_x)
    found = tl.zeros_like(x)
    if HARD:
        target = tl.where(columns == label, gold_share + all_share, all_share)
        found += tl.where(hard == 0, 0.0, hard * (tl.exp(shifted) / total - target))
    if SOFT:
        mass = kept + lost
        q = tl.exp(shifted) / total if SAME else tl.exp(shifted * cool_x) / heated
        p = tl.where(x == float("-inf"), 0.0, tl.exp((t - at(top_t)) * cool_t) / mass)
        found += tl.where(soft == 0, 0.0, soft * (q * (kept / mass) - p))
    return found


@triton.jit
def rows_kernel(
    student, teacher, labels, keep, divisor, upstream, values, gradient,
    student_stride, teacher_stride, rows, classes, cool_x, cool_t, smoothing, soft_factor, hard_slope, soft_slope,
    gold_share, all_share,
    TAUGHT: tl.constexpr, HARD: tl.constexpr, MASKED: tl.constexpr, SMOOTH: tl.constexpr, SAME: tl.constexpr,
    READ: tl.constexpr, GRADIENT: tl.constexpr, HARD_SLOPE: tl.constexpr, SOFT_SLOPE: tl.constexpr,
    BLOCK: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Of one row: `values` `[4, rows]`, hard and soft loss, entropy and agreement, and the row of the gradient.

    `upstream`: two numbers that the slopes of hard and soft loss are multiplied by. `SAME`: the student's logits are not divided in
    the soft loss. `ONE`: BLOCK holds all classes.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    x_row, t_row, g_row = student + row * student_stride, teacher + row * teacher_stride, gradient + row * classes
    counts = True
    if MASKED:
        counts = tl.load(keep + row) != 0
    if counts:
        none, nothing = tl.full([], float("-inf"), tl.float32), tl.full([], 0.0, tl.float32)
        first = tl.full([], 0, tl.int32)
        top_x, top_t, best_x, best_t, where_x, where_t = none, none, none, none, first, first
        total, heated, logits = nothing, nothing, nothing
        kept, lost, apart, energy = nothing, nothing, nothing, nothing
        x, t = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        end = BLOCK if ONE else classes
        for start in range(0, end, BLOCK):
            columns = start + lane
            x = load(x_row, columns, classes)
            old_x = top_x
            top_x, total, heated, logits = fold_student(
                x, start, columns, classes, top_x, total, heated, logits, cool_x, HARD, TAUGHT, SAME, SMOOTH
            )
            if TAUGHT:
                t = load(t_row, columns, classes)
                top_t, kept, lost, apart, energy = fold_teacher(
                    x, t, old_x, top_x, top_t, kept, lost, apart, energy, cool_x, cool_t, READ
                )
            if READ:
                best_x, where_x = fold_best(x, columns, best_x, where_x)
                best_t, where_t = fold_best(t, columns, best_t, where_t)
        hard, soft, entropy, agrees = nothing, nothing, nothing, nothing
        label = -1
        hard_by, soft_by = hard_slope, soft_slope
        if HARD:
            label = tl.load(labels + row).to(tl.int32)
            known = (label >= 0) & (label < classes)
            gold = tl.load(x_row + label, mask=known, other=float("nan")).to(tl.float32)
            log_total = tl.log(total)
            hard = at(top_x) - gold + log_total
            if SMOOTH:
                hard = (1 - smoothing) * hard - smoothing * (logits / classes - log_total)
            hard_by = tl.where(known, hard_slope, float("nan"))  # a label that is no class: loud, not read past the row
        if TAUGHT:
            mass = kept + lost
            of_student = total if SAME else heated
            soft = apart / mass + kept / mass * tl.log(of_student / mass) + lost / mass * 3.4028234663852886e38
            soft = soft_factor * soft
            if READ:
                entropy = tl.log(mass) - energy / mass
                agrees = tl.where(where_x == where_t, 1.0, 0.0)
        tl.store(values + row, hard)
        tl.store(values + rows + row, soft)
        tl.store(values + 2 * rows + row, entropy)
        tl.store(values + 3 * rows + row, agrees)
        if GRADIENT:
            items = tl.load(divisor)
            hard_by = hard_by * tl.load(upstream) / items
            soft_by = soft_by * tl.load(upstream + 1) / items
            for start in range(0, end, BLOCK):
                columns = start + lane
                if not ONE:
                    x = load(x_row, columns, classes)
                    if TAUGHT:
                        t = load(t_row, columns, classes)
                found = block_gradient(
                    x, t, columns, label, top_x, total, heated, top_t, kept, lost, cool_x, cool_t, hard_by, soft_by,
                    gold_share, all_share, HARD_SLOPE, SOFT_SLOPE, SAME,
                )  # fmt: skip
                tl.store(g_row + columns, found.to(gradient.dtype.element_ty), mask=columns < classes)
    else:
        for which in range(4):
            tl.store(values + which * rows + row, 0.0)
        if GRADIENT:
            for start in range(0, classes, BLOCK):
                columns = start + lane
                tl.store(g_row + columns, tl.zeros([BLOCK], gradient.dtype.element_ty), mask=columns < classes)


@triton.jit
def scale_kernel(gradient, by, numbers, BLOCK: tl.constexpr):
    """`gradient` times the number `by`, in place; where that is 1, nothing is read or written."""
    factor = tl.load(by).to(tl.float32)
    if factor != 1:
        columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < numbers
        found = tl.load(gradient + columns, mask=inside).to(tl.float32) * factor
        tl.store(gradient + columns, found.to(gradient.dtype.element_ty), mask=inside)
