//! The bitgear command.
fn main() {}
