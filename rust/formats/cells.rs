//! What the readers of schedules share: lines that know where they are, and cells.

use crate::error::Error;
use crate::schedule::{Action, Kind, Slot};

#[derive(Clone, Copy)]
pub struct Line<'a> {
    pub number: usize,
    pub text: &'a str,
}

impl<'a> Line<'a> {
    /// The words of the line, each with its byte offset.
    pub fn tokens(self) -> impl Iterator<Item = (usize, &'a str)> {
        let base = self.text.as_ptr() as usize;
        self.text.split_ascii_whitespace().map(move |word| (word.as_ptr() as usize - base, word))
    }

    pub fn error(self, offset: usize, message: impl Into<String>) -> Error {
        Error::Text {
            line: self.number,
            column: offset + 1,
            message: message.into(),
        }
    }
}

/// `2F0`, or `(0F7;7B3)`.
pub fn slot(line: Line, offset: usize, word: &str) -> Result<Slot, Error> {
    let Some(inner) = word.strip_prefix('(') else {
        return Ok(Slot::One(action(line, offset, word)?));
    };
    let pair = inner.strip_suffix(')').and_then(|inner| inner.split_once(';'));
    let Some((first, second)) = pair else {
        let message = format!("{} is not a pair such as (0F7;7B3)", quote(word));
        return Err(line.error(offset, message));
    };
    let first_action = action(line, offset + 1, first)?;
    let second_action = action(line, offset + 2 + first.len(), second)?;
    if (first_action.kind, second_action.kind) != (Kind::F, Kind::B) {
        let message = format!("{} does not fuse a forward (first) with a full backward", quote(word));
        return Err(line.error(offset, message));
    }
    Ok(Slot::Pair(first_action, second_action))
}

pub fn action(line: Line, offset: usize, word: &str) -> Result<Action, Error> {
    let parse = || {
        let letter = word.find(|c: char| !c.is_ascii_digit())?;
        let kind = Kind::from_letter(word[letter..].chars().next()?)?;
        let stage = small_number(&word[..letter]).filter(|_| letter > 0)?;
        let microbatch = small_number(word.get(letter + 1..)?).filter(|_| word.len() > letter + 1)?;
        Some(Action::new(stage.try_into().ok()?, kind, microbatch))
    };
    parse().ok_or_else(|| {
        let message = format!(
            "{} is not an action such as 2F0 (stage, one of F I W B, microbatch; numbers without leading \
                     zeros, stages below 65536, microbatches below 10⁹)",
            quote(word)
        );
        line.error(offset, message)
    })
}

/// The word for a message, cut where it is long: a hostile row can be one word of gigabytes.
pub fn quote(word: &str) -> String {
    match word.char_indices().nth(40) {
        None => format!("{word:?}"),
        Some((end, _)) => format!("{:?}…", &word[..end]),
    }
}

/// A number without sign or leading zeros, of at most nine digits.
pub fn small_number(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    if !plain || leading_zero || digits.len() > 9 {
        return None;
    }
    digits.parse().ok()
}
