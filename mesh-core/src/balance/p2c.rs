//! Power of two choices: draw two distinct candidates, take the one with fewer connections.
//!
//! Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001). The least loaded of two
//! random ones avoids both the herd of "least loaded of all" and the unevenness of pure chance.

/// Picks an index below `len`, or `None` when `len` is 0. `random` is one uniformly drawn word; `load` gives the
/// connections of a candidate.
pub fn pick_two_choices(len: usize, random: u64, load: impl Fn(usize) -> usize) -> Option<usize> {
    let count = u64::try_from(len).ok()?;
    match len {
        0 => None,
        1 => Some(0),
        _ => {
            let first = (random >> 32) % count;
            // The second is drawn from the others, so the two never coincide.
            let second = (first + 1 + (random & 0xffff_ffff) % (count - 1)) % count;
            let (first, second) = (usize::try_from(first).ok()?, usize::try_from(second).ok()?);
            Some(if load(second) < load(first) { second } else { first })
        }
    }
}
