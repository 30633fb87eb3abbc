//! Bytes as one field of a line of text: no tab, no line end, always valid UTF-8, and readable again.
//!
//! A backslash is written `\\`, tab `\t`, line feed `\n`, carriage return `\r`; every other control
//! character and every byte that is not part of valid UTF-8 is written `\xHH`, byte by byte.

use std::fmt::Write;

/// The escaped text of `bytes`.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                c if c.is_control() => hex(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => out.push(c),
            }
        }
        hex(&mut out, chunk.invalid());
    }
    out
}

fn hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String can't fail.
        let _ = write!(out, "\\x{byte:02x}");
    }
}

/// The escaped text of the first bytes, for a message to a person: says how many there are if it cuts.
pub fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 120;
    if bytes.len() <= SHOWN {
        return escape(bytes);
    }
    format!("{}… ({} bytes)", escape(&bytes[..SHOWN]), bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The inverse, as the documentation above lets anyone write it.
    fn unescape(text: &str) -> Vec<u8> {
        let (mut out, bytes, mut i) = (Vec::new(), text.as_bytes(), 0);
        while i < bytes.len() {
            if bytes[i] != b'\\' {
                out.push(bytes[i]);
                i += 1;
                continue;
            }
            match bytes[i + 1] {
                b't' => out.push(b'\t'),
                b'n' => out.push(b'\n'),
                b'r' => out.push(b'\r'),
                b'x' => {
                    out.push(u8::from_str_radix(&text[i + 2..i + 4], 16).expect("two digits"));
                    i += 2;
                }
                other => out.push(other),
            }
            i += 2;
        }
        out
    }

    #[test]
    fn examples() {
        assert_eq!(escape("a\tb\\c\nd é".as_bytes()), "a\\tb\\\\c\\nd é");
        assert_eq!(escape(&[0xff, b'a', 0, 0xc3]), "\\xffa\\x00\\xc3");
        assert_eq!(excerpt(&[b'x'; 121]), format!("{}… (121 bytes)", "x".repeat(120)));
        assert_eq!(excerpt(b"x"), "x");
    }

    proptest! {
        #[test]
        fn one_line_and_back(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let text = escape(&bytes);
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            prop_assert_eq!(unescape(&text), bytes);
        }
    }
}
