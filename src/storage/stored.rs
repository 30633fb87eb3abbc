//! The form in which the `sled` engine stores keys and values.
//!
//! A value is `v` and the value, or `p` and where a large one is: number and length, 8 bytes each, big
//! endian. A key has a 0 after each third `ff` of a run, because of how sled scans backwards.
//!
//! Invariants:
//! 1. Stored keys order as the keys do.
//! 2. No stored key has more than [`RUN_MAX`] bytes `ff` in a row.

use std::borrow::Cow;

use super::StorageError;
use super::large::Pointer;

/// First byte of a stored value: the rest is the value.
const INLINE: u8 = b'v';
/// First byte of a stored value: the rest is the number and the length of a large one.
const POINTER: u8 = b'p';

/// The stored form of a value that is not large.
pub(super) fn encode_inline(value: &[u8]) -> Vec<u8> {
    [&[INLINE], value].concat()
}

/// A stored value, taken apart.
pub(super) enum Stored<'a> {
    /// The value.
    Here(&'a [u8]),
    /// Where it is.
    At(Pointer),
}

/// The stored form of a value that is elsewhere.
pub(super) fn encode_pointer(pointer: Pointer) -> Vec<u8> {
    [&[POINTER][..], &pointer.id.to_be_bytes(), &pointer.len.to_be_bytes()].concat()
}

/// Takes apart a stored value.
pub(super) fn decode(stored: &[u8]) -> Result<Stored<'_>, StorageError> {
    let damaged = || StorageError::Corrupt("a stored value of no known form".into());
    match stored {
        [INLINE, value @ ..] => Ok(Stored::Here(value)),
        [POINTER, rest @ ..] => {
            let (id, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
            let len = rest.try_into().map_err(|_| damaged())?;
            Ok(Stored::At(Pointer { id: u64::from_be_bytes(*id), len: u64::from_be_bytes(len) }))
        }
        _ => Err(damaged()),
    }
}

/// Most bytes `ff` in a row in a stored key. sled looks for the page before one that begins at `k` by `k`
/// less one with four bytes `ff` behind it, so none may begin between the two.
const RUN_MAX: usize = 3;

/// The key as stored: a 0 follows each third `ff` of a run. What is added depends on what stands before it
/// alone, so order stays.
pub(super) fn stuff(key: &[u8]) -> Cow<'_, [u8]> {
    if !key.windows(RUN_MAX).any(|window| window.iter().all(|byte| *byte == 0xff)) {
        return Cow::Borrowed(key);
    }
    let mut out = Vec::with_capacity(key.len() + key.len() / RUN_MAX);
    let mut run = 0;
    for byte in key {
        out.push(*byte);
        run = if *byte == 0xff { run + 1 } else { 0 };
        if run == RUN_MAX {
            out.push(0);
            run = 0;
        }
    }
    Cow::Owned(out)
}

/// Takes back [`stuff`].
pub(super) fn unstuff(stored: &[u8]) -> Cow<'_, [u8]> {
    if !stored.windows(RUN_MAX).any(|window| window.iter().all(|byte| *byte == 0xff)) {
        return Cow::Borrowed(stored);
    }
    let mut out = Vec::with_capacity(stored.len());
    let mut run = 0;
    for byte in stored {
        if run == RUN_MAX {
            run = 0;
            continue;
        }
        out.push(*byte);
        run = if *byte == 0xff { run + 1 } else { 0 };
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ff_rich() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![3 => Just(0xffu8), 1 => Just(0), 1 => any::<u8>()], 0..14)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn stuffing_keeps_order_and_round_trips(a in ff_rich(), b in ff_rich()) {
            let (stored_a, stored_b) = (stuff(&a), stuff(&b));
            prop_assert_eq!(&unstuff(&stored_a), &a);
            prop_assert_eq!(stored_a.cmp(&stored_b), a.cmp(&b));
            prop_assert!(!stored_a.windows(RUN_MAX + 1).any(|run| run.iter().all(|byte| *byte == 0xff)));
        }
    }

    #[test]
    fn stored_values_of_no_known_form_are_damage() {
        let pointer = Pointer { id: 7, len: 1 << 40 };
        let encoded = encode_pointer(pointer);
        assert!(matches!(decode(&encoded), Ok(Stored::At(found)) if found == pointer));
        for bad in [&b""[..], b"x", b"p", &encoded[..16], &[&encoded[..], b"x"].concat()] {
            assert!(matches!(decode(bad), Err(StorageError::Corrupt(_))), "{bad:?}");
        }
    }
}
