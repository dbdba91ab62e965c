"""Top-k, min-p and top-p of one row without a sort: the entries that survive are selected.

All values are scaled logits: (logit - largest) / temperature, in float32 and so rounded as by
`decoding/sampler.py`. Masses are summed in double precision, in an order that hangs on the row
alone.
"""

from __future__ import annotations

import numpy as np

from engine.models.cpu.functions import exponential, larger
from engine.models.cpu.kernel import inner_kernel, reordering_kernel
from engine.models.cpu.product import PANEL

_ROOM = 1e-3
"""By which a bound on logarithms is lowered: more than its rounding."""


@inner_kernel
def has_odd(row):
    """Whether an entry is no number."""
    count = np.int32(0)
    for i in range(row.shape[0]):
        count += np.int32(row[i] != row[i])
    return count > 0


@inner_kernel
def find_peaks(row, width, peaks):
    """The largest value of each `width` entries, into peaks; returns where the largest of all is.

    Of equals the first. The row has as many parts as there are peaks.
    """
    best = 0
    for part in range(peaks.shape[0]):
        own, most = row[part * width : (part + 1) * width], np.float32(-np.inf)
        for i in range(own.shape[0]):
            most = larger(most, own[i])
        peaks[part] = most
        if most > peaks[best]:
            best = part
    for i in range(best * width, min((best + 1) * width, row.shape[0])):
        if row[i] == peaks[best]:
            return i
    return 0


@inner_kernel
def survivors(row, largest, temperature, top_k, top_p, log_min_p, ids, values):
    """The tokens that the filters let through, rising; returns how many, written to ids [V].

    values: [V], theirs. top_k 0 and top_p 1 are off.
    """
    size = row.shape[0]
    peaks = np.empty((size + PANEL - 1) // PANEL, np.float32)
    find_peaks(row, PANEL, peaks)
    is_cut = 0 < top_k < size
    cut, total = log_min_p, 0.0
    if is_cut and top_k <= peaks.shape[0]:
        # As many entries as panels have such a peak, so the k-th value is not below it.
        ones, copy = np.ones(peaks.shape[0]), peaks.copy()
        lowest = threshold(copy, ones, peaks.shape[0], np.float64(top_k))
        cut = max(cut, (lowest - largest) / temperature)
    elif not is_cut and cut == -np.inf and top_p < 1.0:
        # What is below has less mass than may be left out, were it the whole vocabulary.
        total = _total_mass(row, largest, np.float32(1.0) / temperature)
        cut = np.float32(np.log((1.0 - np.float64(top_p)) * total / size) - _ROOM)
    count = _gather(row, peaks, largest, temperature, cut, ids, values)
    if is_cut and count > top_k:
        ones, copy = np.ones(count), values[:count].copy()
        lowest = threshold(copy, ones, count, np.float64(top_k))
        count = _keep(ids, values, count, lowest)
    if top_p < 1.0:
        masses, own = np.empty(count), 0.0
        for i in range(count):
            masses[i] = np.float64(exponential(values[i]))
            own += masses[i]
        target = np.float64(top_p) * (total if total > 0.0 else own)
        lowest = threshold(values[:count].copy(), masses, count, target)
        count = _keep(ids, values, count, lowest)
    return count


@inner_kernel
def threshold(values, masses, count, target):
    """The highest value at and above which there is a mass of `target`; else the lowest value.

    Hoare's selection by mass: values and masses are reordered, and of the parts that each pivot
    makes only one is looked at again.
    """
    first, end, pivot = 0, count, np.float32(-np.inf)
    while first < end:
        a, b, c = values[first], values[(first + end) // 2], values[end - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        above, below, i = first, end, first
        mass_above, mass_at = 0.0, 0.0
        while i < below:
            value, mass = values[i], masses[i]
            if value > pivot:
                values[i], masses[i] = values[above], masses[above]
                values[above], masses[above] = value, mass
                mass_above += mass
                above += 1
                i += 1
            elif value < pivot:
                below -= 1
                values[i], masses[i] = values[below], masses[below]
                values[below], masses[below] = value, mass
            else:
                mass_at += mass
                i += 1
        if mass_above >= target:
            end = above
        elif mass_above + mass_at >= target:
            return pivot
        else:
            target -= mass_above + mass_at
            first = below
    return pivot


@inner_kernel
def _gather(row, peaks, largest, temperature, cut, ids, values):
    """Scaled values that are finite and not below the cut, and their tokens."""
    count = 0
    for panel in range(peaks.shape[0]):
        if (peaks[panel] - largest) / temperature < cut:
            continue
        for i in range(panel * PANEL, min((panel + 1) * PANEL, row.shape[0])):
            value = (row[i] - largest) / temperature
            if value >= cut and value > -np.inf:
                ids[count], values[count] = i, value
                count += 1
    return count


@inner_kernel
def _keep(ids, values, count, lowest):
    """Move those not below `lowest` to the front, in order; returns how many they are."""
    kept = 0
    for i in range(count):
        if values[i] >= lowest:
            ids[kept], values[kept] = ids[i], values[i]
            kept += 1
    return kept


@reordering_kernel
def _total_mass(row, largest, factor):
    total = 0.0
    for start in range(0, row.shape[0], PANEL):
        part, own = row[start : start + PANEL], np.float32(0.0)
        for i in range(part.shape[0]):
            own += exponential((part[i] - largest) * factor)
        total += np.float64(own)
    return total
