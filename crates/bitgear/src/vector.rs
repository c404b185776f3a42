//! Loops over numbers, compiled for the vectors that this CPU has.

use pulp::NullaryFnOnce;

/// Runs a loop with AVX2 where the CPU has it. Results are those of the plain loop: nothing is
/// reordered. The loop is a closure that is small enough to be inlined, or a [`NullaryFnOnce`] whose `call`
/// always is, like all that it calls.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "the loop is compiled for the vectors only inside the dispatch"
)]
pub(crate) fn vectorized<R>(run: impl NullaryFnOnce<Output = R>) -> R {
    pulp::Arch::new().dispatch(run)
}
