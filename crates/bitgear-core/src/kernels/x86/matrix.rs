//! Dense convolution with AMX: one instruction adds up the products of bytes of 16 pixels, 16 output
//! channels and 64 input channels in 32 bits, exactly.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, __m512i, _mm512_load_si512};

use super::lanes::Lanes;
use super::quads::{block_width, strips};
use super::tile::runs;
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// Whether this CPU has AMX for bytes and the system lets this process use it.
pub(super) fn present() -> bool {
    const TILES_AND_BYTES: u32 = 1 << 24 | 1 << 25;
    // The leaf exists on every CPU with AVX2.
    let has = __cpuid_count(7, 0).edx & TILES_AND_BYTES == TILES_AND_BYTES;
    has && is_x86_feature_detected!("avx2") && permitted()
}

/// Asks the system for permission to use tiles.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    /// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: the call changes nothing but which registers this process may use.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Bytes of a row of sums or weights.
const ROW: usize = 64;

/// Bytes of each pixel that one instruction multiplies: parts of equal length, at most [`ROW`], of the
/// window's runs of memory.
fn part_of(run: usize) -> usize {
    let parts = run.div_ceil(ROW)..=run / 4;
    let equal = |&parts: &usize| run.is_multiple_of(4 * parts);
    run / parts.into_iter().find(equal).unwrap_or(1)
}

/// Sums of up to 16 pixels and a panel.
#[repr(C, align(64))]
struct Sums([[i32; PANEL]; 16]);

/// Tile registers set up for blocks of so many pixels and parts of so many bytes; released when dropped.
/// Registers 0 to 3 hold sums, 4 and 7 codes of two blocks, 5 and 6 weights of two panels.
struct Tiles;

impl Tiles {
    fn new(pixels: usize, part: usize) -> Self {
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        let (sums, codes, weights) = ((pixels, ROW), (pixels, part), (part / 4, ROW));
        let sizes = [sums, sums, sums, sums, codes, weights, weights, codes];
        for (tile, (rows, bytes)) in sizes.into_iter().enumerate() {
            config.0[16 + 2 * tile] = bytes as u8;
            config.0[48 + tile] = rows as u8;
        }
        // SAFETY: only `conv` calls this, which runs where `present` saw AMX; the memory holds the 64
        // bytes that are read, of at most 16 rows and 64 bytes a tile.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(nostack, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a value exists only where AMX does.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// `packed` is [panel][tap][group of 4 channels][output channel][channel].
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
pub(super) fn conv(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let panels = shape.out_channels.div_ceil(PANEL);
    let width = block_width(shape.out_width, 16);
    let part = runs(shape).next().map_or(4, |(_, len)| part_of(len));
    let _tiles = Tiles::new(width, part);
    let panel_len = packed.len() / panels;
    let mut sums = [const { [const { Sums([[0; PANEL]; 16]) }; 4] }; 2];
    for rows in strips(shape) {
        for panel in (0..panels).step_by(2) {
            let count = (panels - panel).min(2);
            let weights = &packed[panel * panel_len..][..count * panel_len];
            let lanes = [panel, panel + count - 1].map(|panel| Lanes::new(terms, outputs, panel));
            let mut finish = |(blocks, sums): (Pair, &[Sums; 4])| {
                for (at, sums) in blocks.into_iter().flatten().zip(sums.chunks_exact(2)) {
                    for (lanes, sums) in lanes.iter().zip(&sums[..count]) {
                        store(lanes, sums, width, at, terms, outputs);
                    }
                }
            };
            let mut blocks = rows.clone().flat_map(|y| {
                // The last block of a row begins earlier and computes some pixels once more.
                let last = shape.out_width - width;
                (0..shape.out_width).step_by(width).map(move |x| [y, x.min(last)])
            });
            // Each pair of blocks is finished while the next one's products are on their way.
            let mut pending: Option<Pair> = None;
            let mut turn = 0;
            while let Some(first) = blocks.next() {
                let pair = [Some(first), blocks.next()];
                let origins = pair.map(|at| at.map_or(0, |[y, x]| shape.origin(y, x)));
                let place = &mut sums[turn];
                match (count, pair[1].is_some()) {
                    (2, true) => multiply::<2, 2>(shape, weights, part, input, origins, place),
                    (2, false) => multiply::<1, 2>(shape, weights, part, input, origins, place),
                    (_, true) => multiply::<2, 1>(shape, weights, part, input, origins, place),
                    (_, false) => multiply::<1, 1>(shape, weights, part, input, origins, place),
                }
                turn = 1 - turn;
                if let Some(pair) = pending.replace(pair) {
                    finish((pair, &sums[turn]));
                }
            }
            if let Some(pair) = pending {
                finish((pair, &sums[1 - turn]));
            }
        }
    }
}

/// First pixels of two blocks.
type Pair = [Option<[usize; 2]>; 2];

/// Sums of `NB` blocks of pixels in `NP` panels: [block][panel]. `origins` are the windows of the blocks'
/// first pixels.
#[inline]
fn multiply<const NB: usize, const NP: usize>(
    shape: &ConvShape,
    weights: &[i8],
    part: usize,
    input: &[u8],
    origins: [usize; 2],
    sums: &mut [Sums; 4],
) {
    let pixel = shape.strides[1] * shape.input.stride();
    let panel_len = weights.len() / NP;
    // SAFETY: `conv` set the registers up. `check_conv` proved that every pixel's window lies inside
    // the operand; a panel holds 64 bytes for every 4 bytes of the window; sums hold 16 rows.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem)
        );
        let mut panel = weights.as_ptr();
        for (offset, len) in runs(shape) {
            for done in (0..len).step_by(part) {
                let codes =
                    origins.map(|origin| input.as_ptr().wrapping_add(origin + offset + done));
                asm!(
                    "tileloadd tmm4, [{codes} + {pixel}*1]",
                    "tileloadd tmm5, [{panel} + {row}*1]",
                    "tdpbusd tmm0, tmm4, tmm5",
                    codes = in(reg) codes[0], pixel = in(reg) pixel,
                    panel = in(reg) panel, row = in(reg) ROW,
                    options(nostack, readonly),
                );
                if NP == 2 {
                    asm!(
                        "tileloadd tmm6, [{panel} + {row}*1]",
                        "tdpbusd tmm1, tmm4, tmm6",
                        panel = in(reg) panel.add(panel_len), row = in(reg) ROW,
                        options(nostack, readonly),
                    );
                }
                if NB == 2 {
                    asm!(
                        "tileloadd tmm7, [{codes} + {pixel}*1]",
                        "tdpbusd tmm2, tmm7, tmm5",
                        codes = in(reg) codes[1], pixel = in(reg) pixel,
                        options(nostack, readonly),
                    );
                }
                if NB == 2 && NP == 2 {
                    asm!("tdpbusd tmm3, tmm7, tmm6", options(nostack, nomem));
                }
                panel = panel.add(ROW * part / 4);
            }
        }
        let [a, b, c, d] = sums.each_mut().map(|sums| sums.0.as_mut_ptr());
        asm!("tilestored [{} + {}*1], tmm0", in(reg) a, in(reg) ROW, options(nostack));
        if NP == 2 {
            asm!("tilestored [{} + {}*1], tmm1", in(reg) b, in(reg) ROW, options(nostack));
        }
        if NB == 2 {
            asm!("tilestored [{} + {}*1], tmm2", in(reg) c, in(reg) ROW, options(nostack));
        }
        if NB == 2 && NP == 2 {
            asm!("tilestored [{} + {}*1], tmm3", in(reg) d, in(reg) ROW, options(nostack));
        }
    }
}

/// Finishes a block of pixels.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
fn store(
    lanes: &Lanes,
    sums: &Sums,
    pixels: usize,
    at: [usize; 2],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let sums = &sums.0[..pixels];
    let done = pieces::<8>(lanes, sums, 0, at, terms, outputs);
    let done = pieces::<4>(lanes, sums, done, at, terms, outputs);
    pieces::<1>(lanes, sums, done, at, terms, outputs);
}

/// Finishes pixels from `done` on, so many at a time, and says how many are done then.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
fn pieces<const MR: usize>(
    lanes: &Lanes,
    sums: &[[i32; PANEL]],
    mut done: usize,
    [y, x]: [usize; 2],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) -> usize {
    while let Some(rows) = sums[done..].first_chunk::<MR>() {
        let acc: [__m512i; MR] = core::array::from_fn(|r| {
            // SAFETY: a row holds 64 bytes and begins at a multiple of that.
            unsafe { _mm512_load_si512(rows[r].as_ptr().cast()) }
        });
        lanes.store(&acc, [y, x + done], terms, outputs);
        done += MR;
    }
    done
}
