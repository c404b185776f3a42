//! Layers of codes and weights of one bit each, see [`lookup`](crate::kernels::lookup): what groups of
//! channels add is computed once for all signs, then added up for each output channel.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_storel_epi64, _mm_unpackhi_epi64, _mm256_add_epi8,
    _mm256_add_epi16, _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_cvtepi16_epi32,
    _mm256_cvtepu8_epi16, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_maddubs_epi16,
    _mm256_packus_epi16, _mm256_permutevar8x32_epi32, _mm256_set_m128i, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_storeu_si256, _mm256_sub_epi8, _mm256_sub_epi16, _mm256_unpackhi_epi16,
    _mm256_unpacklo_epi16,
};
use core::mem::MaybeUninit;

use super::Aligned;
use super::columns::sixteen;
use super::epilogue::Epilogue;
use super::thresholds::Thresholds;
use crate::kernels::lookup::{GROUP, LANES, PLANES_LEN, Places, Plan, SIGNS, SUMS_LEN};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// Vectors that are summed together.
const MOST: usize = 8;
/// Groups of which sixteen bytes of a pixel have codes.
const QUAD: usize = 4;

/// For each group and pixel of a block the four codes as bits, laid out as the planes are.
type Indices = [u8; PLANES_LEN / SIGNS];
/// Planes of a block.
type Planes = [MaybeUninit<u8>; PLANES_LEN];
/// Sums of a band: [output channel][vector][pixel].
type Sums = [MaybeUninit<i16>; SUMS_LEN];

/// `packed` is as [`lookup::pack`](crate::kernels::lookup::pack) says.
#[target_feature(enable = "avx2,fma")]
pub(super) fn conv(
    shape: &ConvShape,
    packed: &[i16],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let plan = Plan::new(shape).expect("the class is chosen for layers that have a plan");
    let words = plan.words(shape);
    assert_eq!(packed.len(), plan.packed_len(shape), "packed weights of `{shape:?}`");
    let furthest = packed.iter().map(|&place| place.cast_unsigned()).max().unwrap_or(0);
    let mut indices: Indices = [0; _];
    #[expect(clippy::large_stack_arrays, reason = "40 kB, never cleared; kernels do not allocate")]
    let mut planes = Aligned::<Planes>([MaybeUninit::uninit(); _]);
    #[expect(clippy::large_stack_arrays, reason = "64 kB, never cleared")]
    let mut sums = Aligned::<Sums>([MaybeUninit::uninit(); _]);
    for top in (0..shape.out_height).step_by(plan.rows) {
        let rows = plan.rows.min(shape.out_height - top);
        let vectors = plan.vectors(shape, rows);
        // What `sum` relies on.
        assert!(usize::from(furthest) + vectors * LANES <= plan.planes() * plan.plane, "places");
        let of_blocks = packed.chunks_exact(shape.out_channels * words).enumerate();
        for (block, packed) in of_blocks {
            index(shape, &plan, input, top, rows, block, &mut indices);
            expand(&plan, &indices, &mut planes.0);
            let places = shape.kernel[0] * shape.kernel[1] * plan.groups_of(block);
            let mut first = 0;
            while first < vectors {
                let count = match vectors - first {
                    left @ ..2 => left,
                    2..4 => 2,
                    4..MOST => 4,
                    _ => MOST,
                };
                let channels = packed.chunks_exact(words);
                for (packed, sums) in channels.zip(sums.0.chunks_exact_mut(vectors * LANES)) {
                    let places = Places::new(packed, places);
                    let sums = &mut sums[first * LANES..][..count * LANES];
                    macro_rules! sum {
                        ($n:literal) => {{
                            let planes = &planes.0[first * LANES..];
                            // SAFETY: asserted above; `expand` has written all planes.
                            unsafe { sum::<$n>(planes, places, block == 0, sums) }
                        }};
                    }
                    match count {
                        MOST => sum!(8),
                        4 => sum!(4),
                        2 => sum!(2),
                        _ => sum!(1),
                    }
                }
                first += count;
            }
        }
        finish(shape, &plan, &sums.0, [top, rows], terms, outputs);
    }
}

/// Packs the codes of a block's groups for a band that begins at row `top`, four of a pixel into one byte.
#[target_feature(enable = "avx2")]
fn index(
    shape: &ConvShape,
    plan: &Plan,
    input: &[u8],
    top: usize,
    rows: usize,
    block: usize,
    indices: &mut Indices,
) {
    let groups = plan.groups_of(block);
    let step = shape.strides[1] * shape.input.stride();
    for phase in 0..plan.phases {
        let offsets = (0..shape.kernel[0]).map(|ky| ky * shape.dilations[0]);
        let of_phase = offsets.filter(|row| row % shape.strides[0] == phase);
        let Some(below) = of_phase.map(|row| row / shape.strides[0]).max() else { continue };
        // Rows without anything between them are one.
        let (mut lines, mut len) = (rows + below, plan.columns);
        if shape.strides == [1, 1] && plan.columns * step == shape.input.row() {
            (lines, len) = (1, lines * len);
        }
        for row in 0..lines {
            let y = row * shape.strides[0] + phase;
            let at = shape.origin(top, 0) + y * shape.input.row() + block * plan.block * GROUP;
            for copy in 0..plan.copies {
                let at = at + copy * shape.dilations[1] * shape.input.stride();
                for quad in (0..groups).step_by(QUAD) {
                    let channel = (block * plan.block + quad) * GROUP;
                    let bits = bits(shape.input.channels - channel);
                    let planes: [usize; QUAD] = core::array::from_fn(|i| {
                        plan.planes_at(phase, copy, quad + i) / SIGNS + row * plan.columns
                    });
                    let count = QUAD.min(groups - quad);
                    // Eight pixels may run over the end of a row into the next one, which comes later.
                    for x in (0..len).step_by(8) {
                        let nibbles = nibbles(input, at + quad * GROUP + x * step, step, bits);
                        for (nibbles, plane) in nibbles.into_iter().zip(&planes[..count]) {
                            let eight = &mut indices[plane + x..][..8];
                            // SAFETY: the slice holds eight bytes.
                            unsafe { _mm_storel_epi64(eight.as_mut_ptr().cast(), nibbles) };
                        }
                    }
                }
            }
        }
    }
}

/// Worth of each of sixteen codes within its group's index; 0 for those that aren't channels.
fn bits(channels: usize) -> [i8; 16] {
    core::array::from_fn(|i| if i < channels { 1 << (i % GROUP) } else { 0 })
}

/// Indices of four groups of eight pixels: in the lower half of each vector those of one group.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(input: &[u8], at: usize, step: usize, bits: [i8; 16]) -> [__m128i; QUAD] {
    // SAFETY: the array holds sixteen bytes.
    let bits = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bits.as_ptr().cast()) });
    let inside = at + 7 * step + 16 <= input.len();
    let pixel = |i: usize| {
        if inside {
            // SAFETY: the last of eight pixels has sixteen bytes, so the others have.
            unsafe { _mm_loadu_si128(input.as_ptr().add(at + i * step).cast()) }
        } else {
            sixteen(input, at + i * step)
        }
    };
    let half = |i| _mm256_maddubs_epi16(_mm256_set_m128i(pixel(i + 4), pixel(i)), bits);
    let halves = [half(0), half(1), half(2), half(3)];
    let ones = _mm256_set1_epi8(1);
    let whole = |a, b| _mm256_maddubs_epi16(_mm256_packus_epi16(a, b), ones);
    let bytes = _mm256_packus_epi16(whole(halves[0], halves[1]), whole(halves[2], halves[3]));
    // From pixel by pixel to group by group.
    let order = _mm256_setr_epi32(
        0x0c08_0400,
        0x0d09_0501,
        0x0e0a_0602,
        0x0f0b_0703,
        0x0c08_0400,
        0x0d09_0501,
        0x0e0a_0602,
        0x0f0b_0703,
    );
    let bytes = _mm256_shuffle_epi8(bytes, order);
    let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
    [low, _mm_unpackhi_epi64(low, low), high, _mm_unpackhi_epi64(high, high)]
}

/// For each signs and each four codes, the sum.
const TABLES: [[i8; 16]; SIGNS] = {
    let mut tables = [[0; 16]; SIGNS];
    let mut i = 0;
    while i < SIGNS * 16 {
        let (signs, codes) = ((i / 16) << 1, i % 16);
        let negative = (codes & signs).count_ones() as i8;
        tables[i / 16][codes] = codes.count_ones() as i8 - 2 * negative;
        i += 1;
    }
    tables
};

/// Looks all planes up.
#[target_feature(enable = "avx2")]
fn expand(plan: &Plan, indices: &Indices, planes: &mut Planes) {
    let groups = plan.planes() / SIGNS;
    let indices = indices[..groups * plan.plane].chunks_exact(plan.plane);
    for (indices, planes) in indices.zip(planes.chunks_exact_mut(SIGNS * plan.plane)) {
        for (table, plane) in TABLES.iter().zip(planes.chunks_exact_mut(plan.plane)) {
            // SAFETY: a table holds sixteen bytes.
            let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
            let table = _mm256_broadcastsi128_si256(table);
            for (indices, sums) in indices.chunks_exact(LANES).zip(plane.chunks_exact_mut(LANES)) {
                // SAFETY: both slices are 32 bytes long.
                unsafe {
                    let indices = _mm256_loadu_si256(indices.as_ptr().cast());
                    let values = _mm256_shuffle_epi8(table, indices);
                    _mm256_storeu_si256(sums.as_mut_ptr().cast(), values);
                }
            }
        }
    }
}

/// Adds up one output channel of `N` vectors of pixels, and adds that to `sums`, or sets them if it is the
/// first block.
///
/// # Safety
///
/// `planes` begin at the first vector, and are written from every place on for `N` vectors; so are the sums,
/// unless this is the first block.
#[inline(never)]
#[target_feature(enable = "avx2")]
unsafe fn sum<const N: usize>(
    planes: &[MaybeUninit<u8>],
    places: Places<'_>,
    first: bool,
    sums: &mut [MaybeUninit<i16>],
) {
    let negatives = _mm256_set1_epi16(places.negatives);
    let mut acc = [_mm256_set1_epi8(places.negatives as i8); N];
    let load = |place: i16, vector: usize| {
        let at = usize::from(place.cast_unsigned()) + vector * LANES;
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_si256(planes.as_ptr().add(at).cast()) }
    };
    for &place in places.plus {
        for (vector, acc) in acc.iter_mut().enumerate() {
            *acc = _mm256_add_epi8(*acc, load(place, vector));
        }
    }
    for &place in places.minus {
        for (vector, acc) in acc.iter_mut().enumerate() {
            *acc = _mm256_sub_epi8(*acc, load(place, vector));
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums.chunks_exact_mut(LANES)) {
        let halves = [_mm256_castsi256_si128(acc), _mm256_extracti128_si256::<1>(acc)];
        for (bytes, sums) in halves.into_iter().zip(sums.chunks_exact_mut(LANES / 2)) {
            let mut value = _mm256_sub_epi16(_mm256_cvtepu8_epi16(bytes), negatives);
            if !first {
                // SAFETY: the slice is 32 bytes long; the caller has written it.
                let before = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
                value = _mm256_add_epi16(value, before);
            }
            // SAFETY: the slice is 32 bytes long.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), value) };
        }
    }
}

/// Stores the results of a band of rows.
#[target_feature(enable = "avx2,fma")]
fn finish(
    shape: &ConvShape,
    plan: &Plan,
    sums: &Sums,
    [top, rows]: [usize; 2],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let vectors = plan.vectors(shape, rows);
    let channel_len = vectors * LANES;
    let mut epilogue = Epilogue::new(terms);
    for panel in 0..shape.out_channels.div_ceil(PANEL) {
        let channels = PANEL.min(shape.out_channels - panel * PANEL);
        let of_panel = &sums[panel * PANEL * channel_len..][..channels * channel_len];
        let thresholds = Thresholds::new(terms, outputs, panel, shape.filter_len());
        epilogue.enter(terms, outputs, panel);
        for vector in 0..vectors {
            let [mut y, mut x] = plan.vector_at(vector);
            let mut pixel = 0;
            let beyond = plan.columns - shape.out_width;
            if x >= shape.out_width {
                (pixel, y, x) = (plan.columns - x, y + 1, 0);
            }
            let of_vector = &of_panel[vector * LANES..];
            if let Some(thresholds) = &thresholds {
                let codes = thresholds.codes(|channel| {
                    let sums = of_vector.get(channel * channel_len..)?.first_chunk::<LANES>()?;
                    // SAFETY: the chunk is 64 bytes long, and `sum` has written all vectors.
                    Some(unsafe {
                        let sums = sums.as_ptr();
                        [
                            _mm256_loadu_si256(sums.cast()),
                            _mm256_loadu_si256(sums.add(LANES / 2).cast()),
                        ]
                    })
                });
                while pixel < LANES && y < rows {
                    let count = (LANES - pixel).min(shape.out_width - x);
                    Thresholds::store(&codes[pixel..][..count], [top + y, x], panel, outputs);
                    (pixel, y, x) = (pixel + count + beyond, y + 1, 0);
                }
                continue;
            }
            // Sums of sixteen pixels.
            let half = |half: usize| -> [__m256i; PANEL] {
                let mut loaded = [_mm256_setzero_si256(); PANEL];
                for (channel, loaded) in loaded.iter_mut().enumerate() {
                    let at = channel * channel_len + half * LANES / 2;
                    let sums = of_vector.get(at..).and_then(|s| s.first_chunk::<{ LANES / 2 }>());
                    if let Some(sums) = sums {
                        // SAFETY: the chunk is 32 bytes long, and `sum` has written all vectors.
                        *loaded = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
                    }
                }
                loaded
            };
            let mut pixels = [[_mm256_setzero_si256(); 2]; LANES];
            for (i, pixels) in pixels.chunks_exact_mut(LANES / 2).enumerate() {
                transpose(half(i), pixels);
            }
            while pixel < LANES && y < rows {
                let count = (LANES - pixel).min(shape.out_width - x);
                epilogue.finish(&pixels[pixel..][..count], [top + y, x], terms, outputs);
                (pixel, y, x) = (pixel + count, y + 1, 0);
                pixel += beyond;
            }
        }
    }
}

/// From sixteen channels of sixteen pixels to 32-bit sums, pixel by pixel.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(mut channels: [__m256i; PANEL], pixels: &mut [[__m256i; 2]]) {
    // Each turn moves the first bit of the channel behind the last one of the pixel, within halves.
    for _ in 0..PANEL.ilog2() {
        let before = channels;
        for i in 0..PANEL / 2 {
            let (a, b) = (before[i], before[i + PANEL / 2]);
            channels[2 * i] = _mm256_unpacklo_epi16(a, b);
            channels[2 * i + 1] = _mm256_unpackhi_epi16(a, b);
        }
    }
    for i in 0..8 {
        for half in 0..2 {
            let words = channels[2 * i + half];
            pixels[i][half] = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(words));
            pixels[i + 8][half] = _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(words));
        }
    }
}
