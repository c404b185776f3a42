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

/// Bytes of a full row of a tile.
const ROW: usize = 64;

/// Sums of up to 16 pixels and a panel.
#[repr(C, align(64))]
struct Sums([[i32; PANEL]; 16]);

/// Tile registers set up for blocks of so many pixels; released when dropped. Registers 0 and 1 hold
/// sums, 4 codes and 5, 6 weights of 64 input channels, 2 codes and 3, 7 weights of what is left over.
struct Tiles;

impl Tiles {
    /// `rest` is the number of channels left over.
    fn new(pixels: usize, rest: usize) -> Self {
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        let rest = if rest == 0 { ROW } else { rest };
        let sizes = [
            (pixels, ROW),
            (pixels, ROW),
            (pixels, rest),
            (rest / 4, ROW),
            (pixels, ROW),
            (ROW / 4, ROW),
            (ROW / 4, ROW),
            (rest / 4, ROW),
        ];
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
    let run = runs(shape).next().map_or(0, |(_, len)| len);
    let _tiles = Tiles::new(width, run % ROW);
    let panel_len = packed.len() / panels;
    let mut sums = [const { [const { Sums([[0; PANEL]; 16]) }; 2] }; 2];
    for rows in strips(shape) {
        for panel in (0..panels).step_by(2) {
            let count = (panels - panel).min(2);
            let weights = &packed[panel * panel_len..][..count * panel_len];
            let lanes =
                [Lanes::new(terms, outputs, panel), Lanes::new(terms, outputs, panel + count - 1)];
            let blocks = rows.clone().flat_map(|y| {
                // The last block of a row begins earlier and computes some pixels once more.
                let last = shape.out_width - width;
                (0..shape.out_width).step_by(width).map(move |x| [y, x.min(last)])
            });
            // Each block is finished while the next one's products are on their way.
            let mut pending: Option<[usize; 2]> = None;
            let mut turn = 0;
            for at in blocks {
                let first = shape.origin(at[0], at[1]);
                if count == 2 {
                    block::<2>(shape, weights, input, first, &mut sums[turn]);
                } else {
                    block::<1>(shape, weights, input, first, &mut sums[turn]);
                }
                turn = 1 - turn;
                if let Some(at) = pending.replace(at) {
                    for (lanes, sums) in lanes.iter().zip(&sums[turn][..count]) {
                        store(lanes, sums, width, at, terms, outputs);
                    }
                }
            }
            if let Some(at) = pending {
                for (lanes, sums) in lanes.iter().zip(&sums[1 - turn][..count]) {
                    store(lanes, sums, width, at, terms, outputs);
                }
            }
        }
    }
}

/// Sums of a block of pixels in `NP` panels. `at` is the first pixel's window.
#[inline]
fn block<const NP: usize>(
    shape: &ConvShape,
    weights: &[i8],
    input: &[u8],
    at: usize,
    sums: &mut [Sums; 2],
) {
    let pixel = shape.strides[1] * shape.input.stride();
    let panel_len = weights.len() / NP;
    // SAFETY: `conv` set the registers up. `check_conv` proved that every pixel's window lies inside
    // the operand; a panel holds 64 bytes for every 4 bytes of the window; sums hold 16 rows.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        let mut panel = weights.as_ptr();
        for (offset, len) in runs(shape) {
            let mut codes = input.as_ptr().add(at + offset);
            for _ in 0..len / ROW {
                asm!(
                    "tileloadd tmm4, [{codes} + {pixel}*1]",
                    "tileloadd tmm5, [{panel} + {row}*1]",
                    "tdpbusd tmm0, tmm4, tmm5",
                    codes = in(reg) codes, pixel = in(reg) pixel,
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
                codes = codes.add(ROW);
                panel = panel.add(ROW * ROW / 4);
            }
            let rest = len % ROW;
            if rest > 0 {
                asm!(
                    "tileloadd tmm2, [{codes} + {pixel}*1]",
                    "tileloadd tmm3, [{panel} + {row}*1]",
                    "tdpbusd tmm0, tmm2, tmm3",
                    codes = in(reg) codes, pixel = in(reg) pixel,
                    panel = in(reg) panel, row = in(reg) ROW,
                    options(nostack, readonly),
                );
                if NP == 2 {
                    asm!(
                        "tileloadd tmm7, [{panel} + {row}*1]",
                        "tdpbusd tmm1, tmm2, tmm7",
                        panel = in(reg) panel.add(panel_len), row = in(reg) ROW,
                        options(nostack, readonly),
                    );
                }
                panel = panel.add(ROW * rest / 4);
            }
        }
        asm!(
            "tilestored [{first} + {row}*1], tmm0",
            first = in(reg) sums[0].0.as_mut_ptr(), row = in(reg) ROW,
            options(nostack),
        );
        if NP == 2 {
            asm!(
                "tilestored [{second} + {row}*1], tmm1",
                second = in(reg) sums[1].0.as_mut_ptr(), row = in(reg) ROW,
                options(nostack),
            );
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
    [y, x]: [usize; 2],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut done = 0;
    macro_rules! pieces {
        ($mr:literal) => {
            while done + $mr <= pixels {
                let rows = &sums.0[done..done + $mr];
                // SAFETY: a row holds 64 bytes and begins at a multiple of that.
                let acc: [__m512i; $mr] =
                    core::array::from_fn(|r| unsafe { _mm512_load_si512(rows[r].as_ptr().cast()) });
                lanes.store(&acc, [y, x + done], terms, outputs);
                done += $mr;
            }
        };
    }
    pieces!(8);
    pieces!(4);
    pieces!(2);
    pieces!(1);
}
