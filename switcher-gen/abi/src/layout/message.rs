//! The message of a failed layout assertion: text around a number that only the compiler knows.
//!
//! A constant can panic with a string but cannot format one, so the text is put together here, in
//! constant evaluation. Only the derive uses this.

/// A short text, made at compile time.
#[doc(hidden)]
#[derive(Debug)]
pub struct Message {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Message {
    /// How many bytes a text may have. Longer texts lose their end.
    const CAPACITY: usize = 256;

    /// The text `before`, then `number` in the given radix (16 with its prefix, or 10), then
    /// `after`.
    #[must_use]
    pub const fn new(before: &str, number: usize, radix: usize, after: &str) -> Self {
        let empty = Self { bytes: [0; Self::CAPACITY], len: 0 };
        let prefix = if radix == 16 { "0x" } else { "" };
        empty.text(before).text(prefix).number(number, radix).text(after)
    }

    const fn byte(mut self, byte: u8) -> Self {
        if self.len < Self::CAPACITY {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        self
    }

    const fn text(mut self, text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            self = self.byte(bytes[at]);
            at += 1;
        }
        self
    }

    const fn number(self, number: usize, radix: usize) -> Self {
        let higher = number / radix;
        let written = if higher == 0 { self } else { self.number(higher, radix) };
        written.byte(b"0123456789abcdef"[number % radix])
    }

    /// The text; empty if its end was cut within a character.
    #[must_use]
    pub const fn as_str(&self) -> &str {
        let (text, _) = self.bytes.split_at(self.len);
        match core::str::from_utf8(text) {
            Ok(text) => text,
            Err(_) => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Message;

    #[test]
    fn numbers_are_written_as_they_are_read() {
        assert_eq!(Message::new("at ", 0, 16, "!").as_str(), "at 0x0!");
        assert_eq!(Message::new("", 0x1a0, 16, "").as_str(), "0x1a0");
        assert_eq!(Message::new("is ", 128, 10, " bytes").as_str(), "is 128 bytes");
    }

    #[test]
    fn a_text_that_is_too_long_loses_its_end() {
        let long = "x".repeat(300);
        assert_eq!(Message::new(&long, 1, 10, "").as_str().len(), 256);
    }
}
