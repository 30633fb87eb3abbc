//! Words into HTML and SVG: all that came from outside goes through [`escape`].

use crate::checker::Valid;

/// The blue of what took effect.
pub const OK: &str = "#3b82d6";
/// The orange of what nobody knows.
pub const INFO: &str = "#f29100";
/// The red of what surely did not happen.
pub const FAIL: &str = "#d92f3a";
/// The colours of faults: none of them blue, orange or red.
pub const FAULTS: [&str; 12] = [
    "#8e6bd8", "#2fa58a", "#b7793f", "#cf5aa6", "#7a8793", "#93a325", "#3aa6bf", "#5b5fc7", "#a85454",
    "#4f8a3c", "#c9a227", "#44566b",
];

/// The text with what has a meaning in markup replaced, and control characters shown as `\u0007`.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push_str("&#10;"),
            // XML forbids these even when escaped.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

/// The first characters of a text; what is cut off is marked.
pub fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A path within the store as a link: what is no plain character of a name is percent-encoded.
pub fn link(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// A verdict's word and colour.
pub fn verdict(valid: Valid) -> (&'static str, &'static str) {
    match valid {
        Valid::Yes => ("valid", "#2b8a3e"),
        Valid::Unknown => ("unknown", "#c77700"),
        Valid::No => ("invalid", "#c2255c"),
    }
}

/// A whole number with thin spaces between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// A duration in nanoseconds as people say it: `730 µs`, `12.4 ms`, `1.25 s`.
pub fn duration(nanos: u64) -> String {
    let n = nanos as f64;
    match nanos {
        0..1_000_000 => format!("{:.0} µs", n / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", n / 1e6),
        _ => format!("{:.2} s", n / 1e9),
    }
}

#[cfg(test)]
pub mod check {
    //! A small check that markup is well-formed: tags balance, attributes are quoted and unique, text is escaped.

    /// Panics with the place if `text` is not well-formed XML, as far as this room writes it.
    pub fn well_formed(text: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            check_text(&rest[..at]);
            let end = rest[at..].find('>').expect("a tag ends") + at;
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            if tag.starts_with('!') || tag.starts_with('?') {
                continue;
            }
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "closes what is open, before {:.60}", rest);
                continue;
            }
            let body = tag.strip_suffix('/').unwrap_or(tag);
            let (name, attributes) = body.split_once(' ').unwrap_or((body, ""));
            check_attributes(attributes);
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        check_text(rest);
        assert!(open.is_empty(), "left open: {open:?}");
    }

    fn check_attributes(text: &str) {
        let (mut rest, mut seen) = (text.trim(), Vec::new());
        while !rest.is_empty() {
            let (name, tail) = rest.split_once("=\"").unwrap_or_else(|| panic!("an attribute: {rest}"));
            let (value, tail) = tail.split_once('"').unwrap_or_else(|| panic!("a quoted value: {rest}"));
            assert!(!name.contains(char::is_whitespace), "{text}");
            assert!(!seen.contains(&name), "twice {name} in {text}");
            check_text(value);
            seen.push(name);
            rest = tail.trim_start();
        }
    }

    fn check_text(text: &str) {
        for (at, _) in text.match_indices('&') {
            let end = text[at..].find(';').unwrap_or_else(|| panic!("a bare & in {text}"));
            let name = &text[at + 1..at + end];
            let known = ["amp", "lt", "gt", "quot"].contains(&name) || name.starts_with('#');
            assert!(known, "&{name}; in {text:.80}");
        }
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "a control character in {text:.80}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_words_are_only_words() {
        let nasty = "<script>\"a\" & 'b'</script>\u{7}\0\n";
        let text = escape(nasty);
        assert_eq!(text, "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;\\u0007\\u0000&#10;");
        check::well_formed(&format!("<a title=\"{text}\">{text}</a>"));
        assert_eq!(link("a b/..%2e\"x"), "a%20b/..%252e%22x");
    }

    #[test]
    fn the_check_finds_what_is_malformed() {
        for bad in ["<a>", "<a></b>", "<a x=1></a>", "<a>&</a>", "<a x=\"1\" x=\"2\"/>", "<a>\u{1}</a>"] {
            assert!(std::panic::catch_unwind(|| check::well_formed(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_as_people_say_them() {
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(12), "12");
        assert_eq!(
            [duration(730_000), duration(12_440_000), duration(1_250_000_000)],
            ["730 µs", "12.4 ms", "1.25 s"]
        );
        assert_eq!(short("abcdef", 4), "abc…");
    }
}
