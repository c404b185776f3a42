//! Samples in other places: the float network scores a sample that was moved a little as well as any other
//! input, so there is more to fit to and less to learn by heart.

use std::borrow::Cow;

use crate::trace::Random;

/// Samples are moved by at most one part in so many of their height and width.
const FARTHEST: usize = 16;

/// How far samples of a shape may be moved.
pub(super) struct Moves<'a> {
    shape: &'a [usize],
    farthest: [usize; 2],
}

impl<'a> Moves<'a> {
    /// For samples of this shape; only images are moved.
    pub(super) fn new(shape: &'a [usize]) -> Self {
        let farthest = match *shape {
            [_, height, width] => [height / FARTHEST, width / FARTHEST],
            _ => [0; 2],
        };
        Self { shape, farthest }
    }

    /// How far down and right the pixels of a sample shall come from.
    pub(super) fn draw(&self, random: &mut Random) -> [isize; 2] {
        self.farthest.map(|most| match most {
            0 => 0,
            most => random.below(2 * most + 1) as isize - most as isize,
        })
    }

    /// A sample of this shape whose pixels come from so far down and right; at the edges the outermost ones are
    /// repeated.
    pub(super) fn apply<'s>(&self, [down, right]: [isize; 2], sample: &'s [f32]) -> Cow<'s, [f32]> {
        let (&[_, height, width], true) = (self.shape, [down, right] != [0; 2]) else {
            return sample.into();
        };
        let from = |at: usize, by: isize, size: usize| at.saturating_add_signed(by).min(size - 1);
        let planes = sample.chunks_exact(height * width);
        let moved = planes.flat_map(|plane| {
            (0..height * width).map(move |at| {
                let (y, x) = (from(at / width, down, height), from(at % width, right, width));
                plane[y * width + x]
            })
        });
        moved.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_moved_whole_and_its_edges_are_repeated() {
        // Two planes of two rows and three columns.
        let sample: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let moved = |offset| Moves::new(&[2, 2, 3]).apply(offset, &sample).into_owned();
        assert_eq!(moved([0, 0]), sample);
        assert_eq!(moved([0, 1]), [1., 2., 2., 4., 5., 5., 7., 8., 8., 10., 11., 11.]);
        assert_eq!(moved([-1, 0]), [0., 1., 2., 0., 1., 2., 6., 7., 8., 6., 7., 8.]);
        assert_eq!(moved([9, -9]), [3., 3., 3., 3., 3., 3., 9., 9., 9., 9., 9., 9.]);
    }

    #[test]
    fn no_sample_is_moved_farther_than_it_may_be() {
        let moves = Moves::new(&[3, 32, 15]);
        let mut random = Random::new(3);
        let drawn: Vec<[isize; 2]> = (0..200).map(|_| moves.draw(&mut random)).collect();
        for down in -2..=2 {
            assert!(drawn.contains(&[down, 0]), "{down}");
        }
        assert!(drawn.iter().all(|&[down, right]| down.abs() <= 2 && right == 0));
    }
}
