//! Reads EDN: what Jepsen's histories hold, and a little more.
//!
//! Commas are white space, `;` begins a comment, `#_` drops the form after it, a list becomes a vector, a
//! character a string, a tag is skipped. Symbols and ratios are refused: a history has none.

use std::fmt::{self, Display, Formatter};

use super::{Edn, of_a_name};

/// How deep values may nest: far more than a history does, far less than the stack holds.
const DEEPEST: usize = 100;

/// Why a text is not EDN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdnError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl Display for EdnError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for EdnError {}

impl Edn {
    /// Reads one value.
    pub fn parse(text: &str) -> Result<Self, EdnError> {
        let mut reader = Reader { text, place: 0 };
        let value = reader.form(0)?.ok_or_else(|| reader.wrong("nothing there"))?;
        match reader.form(0)? {
            None => Ok(value),
            Some(_) => Err(reader.wrong("more than one value")),
        }
    }

    /// Reads all values of a text.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, EdnError> {
        let mut reader = Reader { text, place: 0 };
        let mut values = Vec::new();
        while let Some(value) = reader.form(0)? {
            values.push(value);
        }
        Ok(values)
    }
}

struct Reader<'a> {
    text: &'a str,
    place: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.place..).unwrap_or_default()
    }

    fn wrong(&self, what: &'static str) -> EdnError {
        let before = self.text.get(..self.place).unwrap_or(self.text);
        EdnError { line: before.matches('\n').count() + 1, what }
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let char = self.peek()?;
        self.place += char.len_utf8();
        Some(char)
    }

    fn take(&mut self, prefix: &str) -> bool {
        let there = self.rest().starts_with(prefix);
        self.place += if there { prefix.len() } else { 0 };
        there
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest().trim_start_matches(|char: char| char.is_whitespace() || char == ',');
            self.place = self.text.len() - rest.len();
            if !rest.starts_with(';') {
                return;
            }
            self.place += rest.find('\n').unwrap_or(rest.len());
        }
    }

    /// The next value; none at the end or before a closing bracket at depth 0 (which is then an error).
    fn form(&mut self, depth: usize) -> Result<Option<Edn>, EdnError> {
        if depth > DEEPEST {
            return Err(self.wrong("nested too deep"));
        }
        loop {
            self.skip_blanks();
            if !self.take("#_") {
                break;
            }
            if self.form(depth + 1)?.is_none() {
                return Err(self.wrong("nothing to drop after #_"));
            }
        }
        let Some(char) = self.peek() else { return Ok(None) };
        let value = match char {
            '[' | '(' => {
                self.next();
                Edn::Vector(self.items(if char == '[' { ']' } else { ')' }, depth)?)
            }
            '{' => {
                self.next();
                self.entries(depth)?
            }
            '"' => {
                self.next();
                Edn::Str(self.string()?)
            }
            '\\' => {
                self.next();
                self.character()?
            }
            ':' => {
                self.next();
                Edn::Keyword(self.name()?.to_owned())
            }
            '#' => return self.dispatch(depth).map(Some),
            ']' | ')' | '}' => return Err(self.wrong("a bracket that nothing opened")),
            _ => self.word()?,
        };
        Ok(Some(value))
    }

    /// What begins with `#`.
    fn dispatch(&mut self, depth: usize) -> Result<Edn, EdnError> {
        if self.take("##") {
            return match self.name()? {
                "NaN" => Ok(Edn::Float(f64::NAN)),
                "Inf" => Ok(Edn::Float(f64::INFINITY)),
                "-Inf" => Ok(Edn::Float(f64::NEG_INFINITY)),
                _ => Err(self.wrong("an unknown number after ##")),
            };
        }
        if self.take("#{") {
            return self.items('}', depth).map(Edn::Set);
        }
        self.next();
        self.name()?;
        self.form(depth + 1)?.ok_or_else(|| self.wrong("a tag of nothing"))
    }

    fn items(&mut self, close: char, depth: usize) -> Result<Vec<Edn>, EdnError> {
        let mut items = Vec::new();
        loop {
            self.skip_blanks();
            if self.peek() == Some(close) {
                self.next();
                return Ok(items);
            }
            // A dropped form may stand last.
            if self.rest().starts_with("#_") {
                self.place += 2;
                self.form(depth + 1)?;
                continue;
            }
            match self.form(depth + 1)? {
                Some(item) => items.push(item),
                None => return Err(self.wrong("a bracket that nothing closes")),
            }
        }
    }

    fn entries(&mut self, depth: usize) -> Result<Edn, EdnError> {
        let mut items = self.items('}', depth)?.into_iter();
        let mut entries = Vec::with_capacity(items.len() / 2);
        while let Some(key) = items.next() {
            let value = items.next().ok_or_else(|| self.wrong("a key without a value"))?;
            entries.push((key, value));
        }
        Ok(Edn::Map(entries))
    }

    fn string(&mut self) -> Result<String, EdnError> {
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(self.wrong("a string that does not end")),
                Some('"') => return Ok(text),
                Some('\\') => {
                    let char = match self.next() {
                        Some('n') => '\n',
                        Some('r') => '\r',
                        Some('t') => '\t',
                        Some('b') => '\u{8}',
                        Some('f') => '\u{c}',
                        Some('u') => self.escaped()?,
                        Some(char @ ('"' | '\\' | '/')) => char,
                        _ => return Err(self.wrong("an unknown escape")),
                    };
                    text.push(char);
                }
                Some(char) => text.push(char),
            }
        }
    }

    /// The character after `\u`: four digits, or two times four as Java has it.
    fn escaped(&mut self) -> Result<char, EdnError> {
        let first = self.four_digits()?;
        let code = if (0xd800..0xdc00).contains(&first) && self.take("\\u") {
            let second = self.four_digits()?;
            0x10000 + ((first - 0xd800) << 10) + (second.wrapping_sub(0xdc00) & 0x3ff)
        } else {
            first
        };
        char::from_u32(code).ok_or_else(|| self.wrong("no such character"))
    }

    fn four_digits(&mut self) -> Result<u32, EdnError> {
        let digits = self.rest().get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        self.place += if code.is_some() { 4 } else { 0 };
        code.ok_or_else(|| self.wrong("not four digits after \\u"))
    }

    fn character(&mut self) -> Result<Edn, EdnError> {
        let char = self.next().ok_or_else(|| self.wrong("no character after \\"))?;
        let begin = self.place - char.len_utf8();
        while self.peek().is_some_and(of_a_name) {
            self.next();
        }
        let text = match self.text.get(begin..self.place).unwrap_or_default() {
            "newline" => "\n",
            "space" => " ",
            "tab" => "\t",
            "return" => "\r",
            one if one.chars().count() == 1 => one,
            _ => return Err(self.wrong("an unknown character")),
        };
        Ok(Edn::Str(text.to_owned()))
    }

    fn name(&mut self) -> Result<&'a str, EdnError> {
        let rest = self.rest();
        let end = rest.find(|char| !of_a_name(char)).unwrap_or(rest.len());
        self.place += end;
        match rest.get(..end) {
            Some(name) if !name.is_empty() => Ok(name),
            _ => Err(self.wrong("a name is missing")),
        }
    }

    fn word(&mut self) -> Result<Edn, EdnError> {
        match self.name()? {
            "nil" => Ok(Edn::Nil),
            "true" => Ok(Edn::Bool(true)),
            "false" => Ok(Edn::Bool(false)),
            word => self.number(word),
        }
    }

    fn number(&self, word: &str) -> Result<Edn, EdnError> {
        if !word.trim_start_matches(['+', '-']).starts_with(|char: char| char.is_ascii_digit()) {
            return Err(self.wrong("a symbol"));
        }
        let whole = word.strip_suffix('N').unwrap_or(word);
        if let Ok(number) = whole.parse() {
            return Ok(Edn::Int(number));
        }
        let float = word.strip_suffix('M').unwrap_or(word);
        if !float.contains(['.', 'e', 'E', 'M']) && float.len() == word.len() {
            return Err(self.wrong("a number that is too large, or none"));
        }
        float.parse().map(Edn::Float).map_err(|_| self.wrong("not a number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jepsen_writes_is_read() {
        let text = "; a comment\n{:a (1 2), :b #{x/y}}";
        assert_eq!(Edn::parse(text), Err(EdnError { line: 2, what: "a symbol" }));
        let text =
            "; a comment\n#jepsen.history.Op{:a (1 -2N +3), :b #_ dropped #_{:x 1} \\c, :d [1.5M 1e3 #_9]}";
        let text = text.replace("dropped", ":dropped");
        let ints = Edn::vector([1_i64, -2, 3]);
        let floats = Edn::vector([1.5, 1000.0]);
        assert_eq!(Edn::parse(&text), Ok(Edn::map([("a", ints), ("b", Edn::from("c")), ("d", floats)])));
        assert_eq!(Edn::parse(r#""\u0041\ud83d\ude00\/\b""#), Ok(Edn::from("A😀/\u{8}")));
        assert_eq!(Edn::parse_all(" , ;x"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_not_edn_is_refused_with_its_line() {
        let refused = |text: &str| Edn::parse_all(text).expect_err(text);
        assert_eq!(refused("1\n[1").line, 2);
        for text in
            ["[1", "]", "{:a}", "\"", "\"\\q\"", "\"\\u12\"", "\"\\ud800\"", ":", "1x", "#", "\\", "#_"]
        {
            refused(text);
        }
        refused("99999999999999999999");
        refused(&"[".repeat(100_000));
        assert_eq!(Edn::parse("1 2"), Err(EdnError { line: 1, what: "more than one value" }));
    }
}
