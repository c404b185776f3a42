//! Loops over numbers, compiled for the vectors that this CPU has.

/// Runs a loop with AVX2 where the CPU has it. Results are those of the plain loop: nothing is
/// reordered.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "the loop is compiled for the vectors only inside the dispatch"
)]
pub(crate) fn vectorized<R>(run: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(run)
}
