//! Weight codes as a dense string of bits.

/// The `to` leading ones of `from` bits of each code, as the odd codes that stand for them; all bits
/// as they are.
pub(super) fn leading(codes: &[i16], from: u8, to: u8) -> Vec<i16> {
    if from == to {
        return codes.to_vec();
    }
    odd(&codes.iter().map(|&code| code >> (from - to)).collect::<Vec<_>>())
}

/// The odd codes 2p + 1 that two's complement codes p stand for.
pub(super) fn odd(codes: &[i16]) -> Vec<i16> {
    codes.iter().map(|&code| 2 * code + 1).collect()
}

/// The two's complement codes p that stand for odd ones.
pub(super) fn halved(odd: &[i16]) -> Vec<i16> {
    odd.iter().map(|&code| code >> 1).collect()
}

/// Packs two's complement codes of `bits` bits, first code in the lowest bits of the first byte.
/// At 1 bit -1 is stored as 0 and +1 as 1. The last byte is padded with zeros.
pub(super) fn pack(codes: &[i16], bits: u8) -> Vec<u8> {
    let mut packed = Vec::with_capacity(packed_len(codes.len(), bits));
    let (mut pending, mut filled) = (0_u32, 0);
    for &code in codes {
        let field = if bits == 1 { u32::from(code > 0) } else { code as u16 as u32 & mask(bits) };
        pending |= field << filled;
        filled += u32::from(bits);
        while filled >= 8 {
            packed.push(pending as u8);
            pending >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        packed.push(pending as u8);
    }
    packed
}

/// The first `count` codes of a packed string, which must be [`packed_len`] bytes long.
pub(super) fn unpack(packed: &[u8], count: usize, bits: u8) -> Vec<i16> {
    debug_assert_eq!(packed.len(), packed_len(count, bits), "callers check the length");
    let mut bytes = packed.iter();
    let (mut pending, mut filled) = (0_u32, 0);
    (0..count)
        .map(|_| {
            while filled < u32::from(bits) {
                let byte = bytes.next().copied().expect("the length was checked");
                pending |= u32::from(byte) << filled;
                filled += 8;
            }
            let field = pending & mask(bits);
            pending >>= bits;
            filled -= u32::from(bits);
            if bits == 1 {
                if field == 1 { 1 } else { -1 }
            } else {
                // Moves the sign bit to the top of the i16 and back.
                (field << (16 - bits)) as u16 as i16 >> (16 - bits)
            }
        })
        .collect()
}

/// Bytes that `count` codes of `bits` bits take.
pub(super) fn packed_len(count: usize, bits: u8) -> usize {
    (count * usize::from(bits)).div_ceil(8)
}

fn mask(bits: u8) -> u32 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_fill_bytes_from_the_lowest_bit() {
        // -1, 1, -4 of 3 bits are 111, 001, 100: 0b00_001_111 with the low bits of 100 on top.
        assert_eq!(pack(&[-1, 1, -4], 3), [0b0000_1111, 0b1]);
        assert_eq!(pack(&[1, -1, 1], 1), [0b101]);
    }

    #[test]
    fn leading_bits_stand_for_the_middle_of_what_begins_with_them() {
        assert_eq!(leading(&[-8, -1, 0, 5, 7], 4, 2), [-3, -1, 1, 3, 3]);
        assert_eq!(leading(&[-8, 7], 4, 1), [-1, 1]);
        assert_eq!(leading(&[-8, 7], 4, 4), [-8, 7]);
    }

    proptest! {
        #[test]
        fn unpacking_gives_back_every_code(raw in prop::collection::vec(any::<i16>(), 0..50), bits in 1_u8..=16) {
            let codes: Vec<i16> = raw
                .iter()
                .map(|&c| if bits == 1 { if c < 0 { -1 } else { 1 } } else { c >> (16 - bits) })
                .collect();
            let packed = pack(&codes, bits);
            prop_assert_eq!(packed.len(), packed_len(codes.len(), bits));
            prop_assert_eq!(unpack(&packed, codes.len(), bits), codes);
        }
    }
}
